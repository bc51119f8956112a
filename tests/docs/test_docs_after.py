"""The guide on what can be known about a merged model: its commands run, and say what it shows."""

from pages import carry_out


def test_its_commands_run_and_say_what_it_shows(here):
    commands = carry_out("guides/after-a-merge.md", here)
    assert {"verify", "reproduce"} <= {command.split()[1] for command in commands}
    assert not [path.name for path in here.iterdir() if "reproduced" in path.name]
