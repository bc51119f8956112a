"""The reference page of the command line."""

import re
from pathlib import Path

import click

from mergekit.cli.main import COMMANDS
from mergekit.cli.merge import merge
from mergekit.cli.options import EXIT_CODES, NO_EFFECT, Option
from mergekit.cli.reference import help_text, refreshed

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROSE = TEXT.partition("## Help texts")[0]
NO_EFFECT_TABLE = PROSE.partition("These are accepted and do nothing")[2]


def test_help_texts_are_up_to_date():
    assert refreshed(TEXT) == TEXT, "run: python -m mergekit.cli.reference docs/reference/cli.md"


def test_every_command_has_its_help_text():
    shown = re.findall(r"<!-- help: (.+) -->", TEXT)
    assert {help_text(command) for command in shown} >= {
        help_text("mergekit"),
        help_text("mergekit-yaml"),
        *(help_text(f"mergekit {name}") for name in COMMANDS if name not in ("yaml", "merge")),
    }


def test_outdated_texts_are_replaced():
    outdated = TEXT.replace("--num-threads N", "--num-threads M")
    assert outdated != TEXT
    assert refreshed(outdated) == TEXT.replace("--num-threads N", "--num-threads N")


def test_lines_fit_a_terminal_of_100_columns():
    assert max(map(len, help_text("mergekit-yaml").splitlines())) <= 100


def test_every_flag_is_explained():
    options = [option for option in merge.params if isinstance(option, click.Option)]
    missing = [option.opts[-1] for option in options if f"`{option.opts[-1]}" not in PROSE]
    assert [name for name in missing if name not in ("--help", "--verbose")] == []


def test_flags_without_effect_are_listed_as_such():
    useless = [option for option in merge.params if isinstance(option, Option) and option.heading == NO_EFFECT]
    assert len(useless) == 10
    assert all(f"`{option.opts[0]}`" in NO_EFFECT_TABLE for option in useless)


def test_every_exit_code_is_explained():
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", PROSE, re.M)] == list(EXIT_CODES)
