"""The guide on the search: its commands run and print what it shows."""

import json
import shlex
import shutil

import yaml
from click.testing import CliRunner
from test_docs import FENCE, ROOT

from mergekit.cli.main import commands

PAGE = (ROOT / "docs" / "guides" / "search.md").read_text(encoding="utf-8")


def test_its_commands_run_and_say_what_it_shows(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("adapters"))
    monkeypatch.chdir(tmp_path)
    said, done = "", 0
    for fence in FENCE.finditer(PAGE):
        if fence["options"].startswith("file="):
            (tmp_path / fence["options"].removeprefix("file=")).write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh" and fence["options"] != "skip":
            program, *arguments = shlex.split(fence["text"])
            name = [program.removeprefix("mergekit-")] if program != "mergekit" else []
            result = CliRunner().invoke(commands, [*name, *arguments])
            said, done = result.output, done + 1
            assert result.exit_code == 0, said
        elif fence["kind"] == "text":
            assert fence["text"].strip() in said
    assert done == 4
    assert len(json.loads((tmp_path / "found" / "history.json").read_text(encoding="utf-8"))["trials"]) == 14
    assert yaml.safe_load((tmp_path / "found" / "best_config.yaml").read_text(encoding="utf-8"))["slices"]
    assert {file.name for file in (tmp_path / "found").iterdir()} >= {"history.csv", "progress.png", "final_model"}
    assert list((tmp_path / "front" / "front").glob("trial_*.yaml"))


def test_it_names_every_key_of_a_configuration():
    from mergekit.evolution.language import EXPERIMENT, GENOME, OBJECTIVE

    ours = ("layer_granularity", "filters", "smooth", "bounds", "parameters", "normalize", "allow_negative_weights")
    assert set(ours) < {key.name for key in GENOME.keys}
    names = [*ours, *(key.name for key in OBJECTIVE.keys if key.name != "name")]
    names += [key.name for key in EXPERIMENT.keys if key.name not in ("genome", "random_init")]
    assert [name for name in names if name not in PAGE] == []
