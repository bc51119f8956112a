"""``mergekit inspect``: text, JSON, tensors, errors."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from mergekit.cli.main import commands


def inspect(*words):
    return CliRunner().invoke(commands, ["inspect", *map(str, words)])


@pytest.fixture
def odd(models, tmp_path):
    """A sharded model whose config.json is wrong about it, with a layer that holds more than the other."""
    config = json.loads((models / "a" / "config.json").read_text())
    wrong = {"vocab_size": 40, "tie_word_embeddings": True, "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config | wrong))
    from safetensors.numpy import load_file

    tensors = load_file(models / "a" / "model.safetensors")
    tensors["model.layers.1.self_attn.qweight"] = np.ones((4, 4), np.int32)
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({name: tensors[name] for name in own}, tmp_path / shard)
    (tmp_path / "model-extra.txt").write_text("not a weight")
    return tmp_path


def test_text_and_json_say_the_same(models):
    result = inspect(models / "a")
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(inspect(models / "a", "--json").stdout)
    assert answer["ok"] is True
    found, text = answer["inspection"], result.stdout
    assert "tensors" not in found
    total = found["total"]
    assert f"parameters     {total['parameters']:,} in {total['tensors']} tensors" in text
    for share in found["parts"]:
        assert re.search(rf"^{share['name']} +{share['tensors']} +{share['parameters']:,} ", text, re.M)
    for module in found["modules"]:
        row = rf"^{module['name']} +{re.escape(module['prefix'])} +{module['layers']} +{module['share']['tensors']} "
        assert re.search(row, text, re.M)
    tokens = found["tokens"]
    assert f"`{tokens['embedding']}`: {tokens['rows']} rows of {tokens['width']}, `vocab_size` {tokens['rows']}" in text
    assert f"`{tokens['head']}`; by config.json not tied" in text
    assert "cuts `model.layers`, [0, 2]" in text


def test_lines_fit_80_columns(models, odd):
    for folder in (models / "a", odd):
        text = inspect(folder).stdout.replace(str(folder), "FOLDER")
        assert max(map(len, text.splitlines())) <= 80


def test_what_is_odd_is_said(odd):
    text = " ".join(inspect(odd).stdout.split())
    found = json.loads(inspect(odd, "--json").stdout)["inspection"]
    assert len(found["contradictions"]) == 2
    for sentence in (*found["contradictions"], *found["remarks"]):
        assert sentence in text
    assert "quantisation gptq; no plain numbers: int32; " in text
    assert "1 10 tensors, 2,224 parameters each, with self_attn.qweight" in text
    assert [share["tensors"] for share in found["files"]] == [11, 11]


def test_every_tensor_is_listed(odd):
    lines = inspect(odd, "--tensors").stdout.splitlines()
    found = json.loads(inspect(odd, "--tensors", "--json").stdout)["inspection"]["tensors"]
    assert len(found) == 22
    for one in found:
        row = next(line.split() for line in lines if one["name"] in line.split())
        shape = "×".join(map(str, one["shape"]))
        layer = "-" if one["layer"] is None else str(one["layer"])
        assert row == [one["dtype"], shape, layer, one["part"], one["name"], one["file"]]


def test_errors(tmp_path):
    result = inspect(tmp_path / "nowhere")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("error: there is no such")
    answer = json.loads(inspect(tmp_path, "--json").stdout)
    assert (answer["ok"], answer["exit_code"], answer["error"]["type"]) == (False, 4, "CheckpointError")
    assert inspect().exit_code == 2
