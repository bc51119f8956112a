"""The guides on pipelines and on small tools: their commands run, and say what they show."""

import json

from pages import carry_out


def test_the_commands_of_the_guide_on_pipelines_run(here):
    assert len(carry_out("guides/pipelines.md", here)) == 5
    assert not (here / "merged.stages").exists()
    assert (here / "merged" / "model.safetensors").read_bytes() == (here / "again" / "model.safetensors").read_bytes()
    assert json.loads((here / "two_languages" / "merge_report.json").read_text())["method"] == "slerp"


def test_the_commands_of_the_guide_on_small_tools_run(here):
    assert len(carry_out("guides/small-tools.md", here)) == 5
    assert json.loads((here / "stacked" / "config.json").read_text())["num_hidden_layers"] == 6
    assert (here / "drawn.yml").read_text().startswith("merge_method: passthrough\nslices:\n")
    assert json.loads((here / "whole" / "merge_report.json").read_text())["left_over"] == []
