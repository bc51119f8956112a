"""The guide on mixtures of experts: its commands run and print what it shows."""

import json
import shutil

import pytest
from test_docs import FENCE, ROOT, options_of, run

PAGE = (ROOT / "docs" / "guides" / "mixture-of-experts.md").read_text(encoding="utf-8")


def test_its_commands_run_and_say_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("MERGEKIT_GATE_CACHE", str(tmp_path / "gates"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    said, commands = "", 0
    for fence in FENCE.finditer(PAGE):
        options = options_of(fence["options"])
        if "file" in options:
            (tmp_path / options["file"]).write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh":
            done = run(fence["text"].strip(), tmp_path)
            said, commands = done.stdout + done.stderr, commands + 1
            assert done.returncode == int(options.get("exit", 0)), said
        elif fence["kind"] == "text":
            assert fence["text"].strip() in said
    assert commands == 5
    assert len(list((tmp_path / "gates").iterdir())) == 1
    report = json.loads((tmp_path / "mixture" / "merge_report.json").read_text(encoding="utf-8"))
    assert report["method"] == "moe"
    assert len(report["parents"]) == 5
    assert not (tmp_path / "trained").exists()
    assert not (tmp_path / "mixture2").exists()


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
