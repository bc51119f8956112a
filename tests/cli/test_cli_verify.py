"""``mergekit verify``."""

import json
import shutil

import pytest
from click.testing import CliRunner

from mergekit.cli.main import commands


def verify(*words):
    return CliRunner().invoke(commands, ["verify", *map(str, words)])


@pytest.fixture
def merged(bench):
    assert bench.run().exit_code == 0
    return bench.out


def test_a_sound_model(merged):
    result = verify(merged)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "merge_report.json" in result.stdout
    assert result.stdout.endswith(f" {merged}\n")
    assert verify(merged, "--quiet").stdout == ""


def test_a_sound_model_as_json(merged):
    answer = json.loads(verify(merged, "--json").stdout)
    assert (answer["ok"], answer["folder"], answer["tensors"]) == (True, str(merged), 21)
    assert answer["checked"]


def test_a_damaged_model(merged):
    file = merged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    result = verify(merged)
    assert (result.exit_code, result.stdout) == (9, "")
    assert result.stderr.startswith("error: ")
    assert str(file) in result.stderr


def test_a_damaged_model_as_json(merged):
    (merged / "model.safetensors").unlink()
    result = verify(merged, "--json")
    answer = json.loads(result.stdout)
    assert (result.stderr, answer["ok"], answer["exit_code"]) == ("", False, result.exit_code)
    assert result.exit_code in (4, 9)
    assert answer["error"]["problems"]


def test_a_model_with_remarks(merged):
    import torch
    from safetensors.torch import load_file

    weights = load_file(merged / "model.safetensors")
    for name in ("model.safetensors", "merge_report.json"):
        (merged / name).unlink()
    torch.save({"state_dict": weights, "epoch": 3}, merged / "pytorch_model.bin")
    result = verify(merged)
    assert (result.exit_code, result.stderr) == (0, "")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("remark ")]
    assert "`epoch`" in line
    answer = json.loads(verify(merged, "--json").stdout)
    assert answer["ok"] is True
    assert [remark in line for remark in answer["remarks"]] == [True]


def test_a_missing_folder_is_a_usage_error(tmp_path):
    assert verify(tmp_path / "nowhere").exit_code == 2


def test_the_models_that_were_merged_are_looked_at_where_they_still_are(bench, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(bench.models, own)
    bench.recipe.write_text(bench.recipe.read_text().replace(str(bench.models), str(own)))
    assert bench.run().exit_code == 0
    assert "distances of about 16 tensors from the parents" in verify(bench.out).stdout
    file = own / "a/model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"\x00\x00\x80\x3f")
    found = verify(bench.out, "--full")
    assert found.exit_code == 9
    assert f"of the norm away from {own / 'a'}, reported" in found.stderr
    file.write_bytes(content + b"\x00" * 8)
    found = verify(bench.out)
    assert (found.exit_code, found.stderr) == (0, "")
    assert (
        f"remark    the weights are not compared with those that were merged: {own / 'a'}: the file has" in found.stdout
    )
    shutil.rmtree(own)
    answer = json.loads(verify(bench.out, "--json").stdout)
    assert answer["ok"]
    assert len(answer["remarks"]) == 2
    assert not any("distances" in what for what in answer["checked"])


def test_in_full_transformers_is_asked(merged):
    result = verify(merged, "--full")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "distances of all tensors from the parents, transformers" in result.stdout
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps({**config, "intermediate_size": 25}))
    assert verify(merged).exit_code == 0
    assert verify(merged, "--full").exit_code == 9


def test_a_merge_without_effect(bench):
    bench.recipe.write_text(bench.recipe.read_text().replace("weight: 0.5", "weight: 0.0", 1))
    assert bench.run().exit_code == 0
    found = verify(bench.out)
    assert found.exit_code == 9
    assert f"the model equals {bench.models / 'b'} everywhere" in found.stderr


def test_a_recipe_that_was_edited_is_told(merged):
    (merged / "mergekit_config.yml").write_text("merge_method: linear\n")
    found = verify(merged)
    assert found.exit_code == 0
    assert "mergekit_config.yml is not the recipe of merge_report.json" in found.stdout
