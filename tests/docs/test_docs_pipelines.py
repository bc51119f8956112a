"""The guides on pipelines and small tools: their commands run and print what they show."""

import json
import shutil

import pytest
from test_docs import FENCE, ROOT, options_of, run


@pytest.fixture
def here(tmp_path):
    shutil.copytree(ROOT / "examples" / "models", tmp_path / "examples" / "models")
    return tmp_path


def carry_out(page, folder):
    """Run the commands of a guide; every line that is shown after one must be in a line of what it said."""
    said, commands = [], 0
    for fence in FENCE.finditer((ROOT / "docs" / "guides" / page).read_text(encoding="utf-8")):
        options = options_of(fence["options"])
        if "file" in options:
            (folder / options["file"]).write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh":
            done = run(fence["text"].strip(), folder)
            assert done.returncode == 0, done.stderr
            said, commands = [*done.stdout.splitlines(), *done.stderr.splitlines()], commands + 1
        else:
            for line in fence["text"].splitlines():
                assert any(line in told for told in said), (line, said)
    return commands


def test_the_commands_of_the_guide_on_pipelines_run(here):
    assert carry_out("pipelines.md", here) == 5
    assert not (here / "merged.stages").exists()
    assert (here / "merged" / "model.safetensors").read_bytes() == (here / "again" / "model.safetensors").read_bytes()
    assert json.loads((here / "two_languages" / "merge_report.json").read_text())["method"] == "slerp"


def test_the_commands_of_the_guide_on_small_tools_run(here):
    assert carry_out("small-tools.md", here) == 5
    assert json.loads((here / "stacked" / "config.json").read_text())["num_hidden_layers"] == 6
    assert (here / "drawn.yml").read_text().startswith("merge_method: passthrough\nslices:\n")
    assert json.loads((here / "whole" / "merge_report.json").read_text())["left_over"] == []
