"""The guide on looking into models: its commands run and print what it shows."""

import json
import shutil

import pytest
from test_docs import FENCE, ROOT, run

PAGE = (ROOT / "docs" / "guides" / "look-into-models.md").read_text(encoding="utf-8")


def test_its_commands_run_and_say_what_it_shows(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    said = ""
    for fence in FENCE.finditer(PAGE):
        if fence["kind"] == "sh":
            (command,) = fence["text"].splitlines()
            done = run(command, tmp_path)
            said = done.stdout
            assert done.returncode == 0, done.stderr
        else:
            assert fence["text"].strip() in said
    between = json.loads((tmp_path / "between.json").read_text(encoding="utf-8"))
    assert between["all"]["cosine"] == pytest.approx(0.99, abs=0.01)


def test_it_has_both_commands():
    commands = [fence["text"].split()[1] for fence in FENCE.finditer(PAGE) if fence["kind"] == "sh"]
    assert set(commands) == {"inspect", "diff"}
