"""The guide on models that differ: its commands run, and say what it shows."""

import json

from pages import carry_out


def test_its_commands_run_and_say_what_it_shows(here):
    assert len(carry_out("guides/tolerance.md", here)) == 3
    report = json.loads((here / "merged" / "merge_report.json").read_text(encoding="utf-8"))
    assert [entry["rule"] for entry in report["rules"]] == ["on_shape_mismatch: crop", "on_missing: skip"]
