"""``mergekit verify``."""

import json

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
