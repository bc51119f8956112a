"""``mergekit convert``."""

import json

import pytest
import torch
from click.testing import CliRunner
from gguf_files import load, logits, write_gguf
from tiny_checkpoints import read_model, write_llama

from mergekit.cli.main import commands


def convert(*words):
    return CliRunner().invoke(commands, ["convert", *map(str, words)])


def test_a_gguf_file_becomes_a_folder(llama, originals, tmp_path):
    result = convert(llama, tmp_path / "out")
    assert (result.exit_code, result.stderr) == (
        0,
        "warning: {}: the file has no tokenizer\n  at models[0].model ({}:3)\n".format(llama, "<convert>"),
    )
    assert result.stdout.endswith(f" {tmp_path / 'out'}\n")
    assert (logits(load(tmp_path / "out")) - logits(originals("llama"))).abs().max() < 1e-5
    assert not (tmp_path / "out" / "README.md").exists()
    assert convert(llama, tmp_path / "out").exit_code == 5
    assert convert(llama, tmp_path / "out", "--overwrite", "--quiet").stdout == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes(dtype, originals, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", "qwen3", originals("qwen3"), "Q8_0")
    answer = json.loads(convert(file, tmp_path / "out", "--dtype", dtype, "--json").stdout)
    assert answer["ok"]
    assert {tensor.dtype for tensor in read_model(tmp_path / "out").values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_pickled_models_are_converted(tmp_path):
    tensors = write_llama(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "model" / "pytorch_model.bin")
    assert convert(tmp_path / "model", tmp_path / "out", "--out-shard-size", "40kB").exit_code == 0
    found = read_model(tmp_path / "out")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1


def test_quantised_models_are_converted(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    tensors = write_llama(folder, dtype=torch.bfloat16)
    packed = {}
    for name, tensor in tensors.items():
        if "_proj" in name:
            packed[name] = tensor.to(torch.float8_e4m3fn)
            packed[f"{name}_scale"] = torch.tensor(0.5)
        else:
            packed[name] = tensor
    save_file(packed, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_file(folder / "model.safetensors").keys() == packed.keys()
    result = convert(folder, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = read_model(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    assert found[name].dtype == torch.bfloat16
    assert torch.equal(found[name].float(), packed[name].float() * 0.5)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_paths_may_look_like_references(llama, tmp_path):
    odd = tmp_path / "a+b@c.gguf"
    odd.write_bytes(llama.read_bytes())
    assert convert(odd, tmp_path / "out").exit_code == 0


def test_what_is_no_model(tmp_path):
    result = convert(tmp_path / "nowhere", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "there is no such folder" in result.stderr
    result = convert("a+b+c", tmp_path / "out")
    assert result.exit_code == 3
    assert "`a+b+c` has more than one `+`" in result.stderr
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3")
    result = convert(tmp_path / "model.gguf", tmp_path / "out")
    assert result.exit_code == 3
    assert "cut short" in result.stderr
    assert not (tmp_path / "out").exists()
