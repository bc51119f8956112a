"""The guide on looking into models: its commands run, and say what it shows."""

import json

import pytest
from pages import carry_out


def test_its_commands_run_and_say_what_it_shows(here):
    commands = carry_out("guides/look-into-models.md", here)
    assert {command.split()[1] for command in commands} == {"inspect", "diff"}
    between = json.loads((here / "between.json").read_text(encoding="utf-8"))
    assert between["all"]["cosine"] == pytest.approx(0.99, abs=0.01)
