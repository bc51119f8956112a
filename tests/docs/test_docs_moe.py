"""The guide on mixtures of experts: its commands run and print what it shows."""

import json

import pytest
from pages import carry_out, text_of

PAGE = text_of("guides/mixture-of-experts.md")


def test_its_commands_run_and_say_what_it_shows(here, monkeypatch):
    monkeypatch.setenv("MERGEKIT_GATE_CACHE", str(here / "gates"))
    assert len(carry_out("guides/mixture-of-experts.md", here)) == 5
    assert len(list((here / "gates").iterdir())) == 1
    report = json.loads((here / "mixture" / "merge_report.json").read_text(encoding="utf-8"))
    assert report["method"] == "moe"
    assert len(report["parents"]) == 5
    assert not (here / "trained").exists()
    assert not (here / "mixture2").exists()


def test_it_names_every_gate_mode_and_family():
    from mergekit.moe import FAMILIES
    from mergekit.moe.language import GATE_MODES

    assert all(f"`{mode}`" in PAGE for mode in GATE_MODES)
    assert all(f"| {family.title} |" in PAGE for family in FAMILIES if "shared" not in family.title)


@pytest.mark.parametrize(
    "flag", ["--fused", "--check-identity", "--allow-inexact", "--no-gate-cache", "--load-in-4bit"]
)
def test_flags_that_it_speaks_of_are_there(flag):
    from mergekit.cli.moe import moe

    known = {name for param in moe.params for name in (*param.opts, *param.secondary_opts)}
    assert flag in PAGE
    assert flag in known
