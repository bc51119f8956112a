"""Layers stacked as bakllama's configs say."""

import json

import pytest
import yaml
from safetensors.torch import load_file
from small_models import call, llama_tensors, write_llama

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        write_llama(folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def tensors():
    return {name: llama_tensors(seed) for seed, name in enumerate(NAMES)}


def stack(models, tmp_path, slices, *flags, **sources):
    entries = [{"model": str(models / name), "start": start, "end": end, **more} for name, start, end, more in slices]
    config = {"layer_slices": entries, **{key: str(models / name) for key, name in sources.items()}}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    return call("bakllama", tmp_path / "config.yml", tmp_path / "out", *flags)


def test_o5_slices_are_stacked_and_a_scale_is_that_of_the_down_projection(models, tensors, tmp_path):
    done = stack(models, tmp_path, [("a", 0, 3, {}), ("b", 1, 4, {"scale": 0.5})], "--strict")
    assert done.exit_code == 0, done.output
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 6
    for place, (name, layer) in enumerate([("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]):
        for suffix in ("mlp.down_proj.weight", "mlp.up_proj.weight", "self_attn.o_proj.weight"):
            factor = 0.5 if name == "b" and "down_proj" in suffix else 1
            expected = factor * tensors[name][f"model.layers.{layer}.{suffix}"]
            assert (written[f"model.layers.{place}.{suffix}"] == expected).all()
    assert (written["model.embed_tokens.weight"] == tensors["a"]["model.embed_tokens.weight"]).all()
    assert (written["lm_head.weight"] == tensors["b"]["lm_head.weight"]).all()


def test_o5_embedding_and_head_come_from_the_models_that_are_named(models, tensors, tmp_path):
    slices = [("a", 0, 2, {}), ("b", 2, 4, {})]
    done = stack(models, tmp_path, slices, "--fp16", embedding_source="c", lm_head_source="d")
    assert done.exit_code == 0, done.output
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert (written["model.embed_tokens.weight"] == tensors["c"]["model.embed_tokens.weight"].half()).all()
    assert (written["lm_head.weight"] == tensors["d"]["lm_head.weight"].half()).all()
    assert (written["model.norm.weight"] == tensors["d"]["model.norm.weight"].half()).all()
    assert sum("input_layernorm" in name for name in written) == 4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["torch_dtype"]) == (4, "float16")
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == (tmp_path / "config.yml").read_text()


@pytest.mark.parametrize("flags", [(), ("--fp16",)])
def test_a_stack_is_verified_by_its_values_and_made_again(models, tmp_path, flags):
    assert stack(models, tmp_path, [("a", 0, 2, {}), ("b", 2, 4, {"scale": 0.5})], *flags).exit_code == 0
    assert "from the parents" in call("verify", tmp_path / "out").stdout
    again = call("reproduce", tmp_path / "out")
    assert again.exit_code == 0, again.stderr
    file = tmp_path / "out" / "merge_report.json"
    report = json.loads(file.read_text())
    report["options"]["bakllama"] = {"dtype": 5}
    file.write_text(json.dumps(report))
    assert call("reproduce", tmp_path / "out").exit_code == 9


def test_it_loads_in_transformers(models, tmp_path):
    from transformers import AutoModelForCausalLM

    assert stack(models, tmp_path, [("a", 0, 3, {}), ("b", 0, 3, {})], embedding_source="b").exit_code == 0
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.config.num_hidden_layers == 6
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer_slices:\n- {model: a, start: 3, end: 3}\n", "the layers from 3 to 3 are none\n  at layer_slices[0]"),
        ("layer_slices:\n- {model: a, start: 0}\n", "`end` is missing from an entry of `layer_slices`"),
        ("layer_slices: []\n", "there is no layer"),
        ("layer_slices:\n- {model: a, start: 0, end: 1, scale: much}\n", "layer_slices[0].scale"),
        ("layer_slices:\n- {model: a, start: 0, end: 1}\nembeding_source: b\n", "try `embedding_source`"),
        ("embedding_source: b\n", "`layer_slices` is missing"),
    ],
)
def test_mistakes_are_told_with_their_places(text, message, tmp_path):
    (tmp_path / "config.yml").write_text(text)
    done = call("bakllama", tmp_path / "config.yml", tmp_path / "out")
    assert done.exit_code == 3
    assert message in done.stderr
    assert "config.yml:" in done.stderr


def test_layers_that_are_not_there_are_told(models, tmp_path):
    done = stack(models, tmp_path, [("a", 2, 9, {})])
    assert done.exit_code == 3
    assert "goes beyond the 4 layers" in done.stderr
