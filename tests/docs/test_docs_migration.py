"""The guide for those who come from the peer: its commands run, and it names all that is the same or new."""

import re

from pages import carry_out, text_of

PAGE = text_of("guides/from-other-mergers.md")


def test_its_commands_run_and_say_what_it_shows(here):
    assert [command.split()[0] for command in carry_out("guides/from-other-mergers.md", here)] == [
        "mergekit",
        "mergekit-yaml",
        "mergekit",
    ]


def test_it_names_every_command():
    from mergekit.cli.main import COMMANDS

    named = set(re.findall(r"`(?:mergekit[ -])?-?([a-z-]+)`", PAGE))
    assert set(COMMANDS) - {"merge"} - named == set()


def test_the_flags_it_speaks_of_are_there():
    from mergekit.cli.main import COMMANDS, commands

    known = set()
    for name in COMMANDS:
        command = commands.get_command(None, name)
        known |= {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= known
