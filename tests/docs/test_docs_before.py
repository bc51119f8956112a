"""The guide on looking ahead: its commands run, and say what it shows."""

from pages import carry_out


def test_its_commands_run_and_say_what_it_shows(here):
    commands = carry_out("guides/before-a-merge.md", here)
    assert [command.split()[1] for command in commands] == ["check", "check", "plan", "explain"]
    assert (here / "gradient.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not (here / "merged").exists()
