"""``mergekit multi`` as people and programs call it."""

import json

import pytest
import yaml
from click.testing import CliRunner
from multi_models import write_model

from mergekit.cli.main import commands


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        write_model(folder / name, seed)
    return folder


@pytest.fixture
def pipeline(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents = [
        {"name": "first", "merge_method": "linear", "models": [{"model": f"{models}/a"}, {"model": f"{models}/b"}]},
        {"merge_method": "linear", "models": [{"model": "first"}, {"model": f"{models}/c"}]},
    ]
    (tmp_path / "p.yml").write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return tmp_path


def call(*words):
    return CliRunner().invoke(commands, ["multi", *map(str, words)])


def test_it_says_what_became_of_every_merge(pipeline):
    done = call("p.yml", "--out-path", "out", "-I", "stages")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "first      merged while `(no name)` is made"
    assert lines[1].startswith("(no name)  written to out: read 153.50 kB, written 51.17 kB in 1 file, ")
    assert "merging the merge without a name into out" in done.stderr
    again = call("p.yml", "--out-path", "out", "-I", "stages")
    assert again.stdout.splitlines() == ["(no name)  up to date in out"]


def test_a_plan_shows_the_graph_and_writes_nothing(pipeline, models):
    done = call("p.yml", "--out-path", "out", "-I", "stages", "--plan")
    assert done.exit_code == 0, done.output
    first, last = done.stdout.splitlines()
    assert first.startswith(f"first      linear of {models}/a, {models}/b; merged while `(no name)` is made; reads ")
    assert last.startswith(f"(no name)  linear of first, {models}/c; to be written to out; reads ")
    assert [file.name for file in pipeline.iterdir()] == ["p.yml"]


def test_the_graph_as_json(pipeline, models):
    done = call("p.yml", "--out-path", "out", "--keep", "--plan", "--json")
    first, last = json.loads(done.stdout)["stages"]
    assert first["bytes_read"] > first["bytes_made"] > 0
    assert {key: first[key] for key in ("name", "state", "folder", "into", "models", "needs")} == {
        "name": "first",
        "state": "written",
        "folder": "out.stages/first",
        "into": None,
        "models": [f"{models}/a", f"{models}/b"],
        "needs": [],
    }
    assert (last["name"], last["needs"], last["method"]) == (None, ["first"], "linear")
    streamed = json.loads(call("p.yml", "--out-path", "out", "--plan", "--json").stdout)["stages"][0]
    assert (streamed["state"], streamed["folder"], streamed["into"]) == ("on the way", None, "(no name)")


def test_the_result_as_json(pipeline):
    done = call("p.yml", "--out-path", "out", "--json", "--no-keep", "--lazy")
    record = json.loads(done.stdout)
    assert record["ok"]
    assert [stage["report"] is None for stage in record["stages"]] == [True, False]
    assert record["stages"][1]["report"]["totals"]["tensors"] == 21
    assert "tensors" not in record["stages"][1]["report"]


def test_only_one_and_where(pipeline):
    assert call("p.yml", "--only", "first", "--out-path", "mine").exit_code == 0
    assert (pipeline / "mine" / "model.safetensors").exists()
    wrong = call("p.yml", "--only", "frist", "--out-path", "other", "--json")
    assert wrong.exit_code == 5
    assert "`--only first`" in json.loads(wrong.stdout)["error"]["message"]


def test_a_merge_that_has_no_folder_is_refused(pipeline):
    done = call("p.yml", "-I", "stages")
    assert done.exit_code == 5
    assert "nothing says where the merge without a name is written" in done.stderr
    assert "try `--out-path FOLDER`" in done.stderr


def test_a_mistake_has_the_exit_code_of_recipes(pipeline):
    text = (pipeline / "p.yml").read_text()
    (pipeline / "p.yml").write_text(
        text.replace("merge_method: linear\nmodels:\n- model: first", "models:\n- model: first")
    )
    done = call("p.yml", "--out-path", "out")
    assert done.exit_code == 3
    assert "`merge_method` is missing" in done.stderr


def test_a_pipeline_from_standard_input(pipeline):
    text = (pipeline / "p.yml").read_text()
    done = CliRunner().invoke(commands, ["multi", "-", "--out-path", "out", "--quiet"], input=text)
    assert (done.exit_code, done.stdout) == (0, "")
    assert (pipeline / "out" / "README.md").exists()
