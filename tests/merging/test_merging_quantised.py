"""Whole merges of quantised models: dequantised on the way in, or kept as they are where nothing is computed."""

import json

import pytest
import torch
from tiny_checkpoints import (
    fine_tuned,
    llama_config,
    llama_shapes,
    merge,
    octets,
    piece,
    random_tensors,
    read_model,
    recipe,
    write_model,
)
from tiny_quantised import FORMATS, quantised_model, settings_of

from mergekit.errors import UnsupportedError

SIZES = {"layers": 2, "width": 64, "inner": 80}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A plain model, and makers of a quantised one with what it stands for."""
    root = tmp_path_factory.mktemp("models")
    config = llama_config(**SIZES)
    base = random_tensors(llama_shapes(config), 0)
    write_model(root / "plain", base, config)
    made = {}

    def make(form):
        if form not in made:
            stored, dense = quantised_model(form, fine_tuned(base, len(made) + 1))
            write_model(root / form, stored, {**config, "torch_dtype": "bfloat16", **settings_of(form)}, shards=2)
            write_model(root / f"{form}-dense", dense, {**config, "torch_dtype": "float32"})
            made[form] = stored
        return root, made[form]

    return make


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert octets(tensor) == octets(other[name]), name


@pytest.mark.parametrize("form", FORMATS)
def test_a_merge_is_that_of_the_dequantised_model(form, models, tmp_path):
    root, _ = models(form)
    told = {}
    for kind in (form, f"{form}-dense"):
        ingredients = [(root / kind, {"weight": 0.25}), (root / "plain", {"weight": 0.75})]
        told[kind] = merge(recipe("linear", ingredients, dtype="float32"), tmp_path / kind)
    same(read_model(tmp_path / form), read_model(tmp_path / f"{form}-dense"))
    config = json.loads((tmp_path / form / "config.json").read_text())
    assert config == json.loads((tmp_path / f"{form}-dense" / "config.json").read_text())
    assert config["torch_dtype"] == "float32"
    assert told[form].plan.read_bytes < told[f"{form}-dense"].plan.read_bytes


def test_methods_with_a_base_and_several_passes(models, tmp_path):
    root, _ = models("fp8_block")
    for kind in ("fp8_block", "fp8_block-dense"):
        text = recipe("ties", [(root / kind, {"weight": 1, "density": 0.4})], base_model=str(root / "plain"))
        merge(text, tmp_path / kind, max_memory=400_000_000)
    same(read_model(tmp_path / "fp8_block"), read_model(tmp_path / "fp8_block-dense"))


@pytest.mark.parametrize("form", FORMATS)
def test_a_copy_keeps_the_bytes_and_the_settings(form, models, tmp_path):
    root, stored = models(form)
    merge(recipe("passthrough", [root / form]), tmp_path / "out")
    same(read_model(tmp_path / "out"), stored)
    assert (tmp_path / "out" / "config.json").read_text() == (root / form / "config.json").read_text()


@pytest.mark.parametrize("more", [{"dtype": "float32"}, {"out_dtype": "float32"}, {"parameters": {"scale": 1}}])
def test_a_copy_in_another_dtype_is_dequantised(more, models, tmp_path):
    root, _ = models("int4_zeros")
    merge(recipe("passthrough", [root / "int4_zeros"], **more), tmp_path / "out")
    dense, found = read_model(root / "int4_zeros-dense"), read_model(tmp_path / "out")
    assert found.keys() == dense.keys()
    for name, tensor in found.items():
        wanted = torch.bfloat16 if "parameters" in more and name.endswith("_proj.weight") else torch.float32
        assert torch.equal(tensor, dense[name].to(wanted)), name
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


def test_layers_are_stacked_packed_if_the_settings_stay_true(models, tmp_path):
    root, stored = models("fp8_block")
    text = recipe("passthrough", slices=[piece((root / "fp8_block", 1, 2)), piece((root / "fp8_block", 0, 2))])
    merge(text, tmp_path / "out")
    found = read_model(tmp_path / "out")
    for suffix in ("weight", "weight_scale_inv"):
        name = f"model.layers.%d.mlp.up_proj.{suffix}"
        assert [octets(found[name % layer]) for layer in range(3)] == [
            octets(stored[name % layer]) for layer in (1, 0, 1)
        ]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]


def test_a_copy_of_what_is_not_quantised_tells_its_dtype(models, tmp_path):
    root, _ = models("fp8_plain")
    config = json.loads((root / "plain" / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    write_model(tmp_path / "stale", read_model(root / "plain"), config)
    merge(recipe("passthrough", [tmp_path / "stale"]), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


def other_settings(root, form, folder, **more):
    """The same weights, with something else in the settings."""
    config = json.loads((root / form / "config.json").read_text())
    config["quantization_config"] |= more
    return write_model(folder, read_model(root / form), config)


@pytest.mark.parametrize("named", [["model.layers.1.mlp"], []])
def test_layers_are_dequantised_if_no_settings_would_be_true(named, models, tmp_path):
    """Settings that name layers by number, or differ between the models."""
    root, _ = models("fp8_block")
    other = other_settings(root, "fp8_block", tmp_path / "other", modules_to_not_convert=named)
    first = other if named else root / "fp8_block"
    text = recipe("passthrough", slices=[piece((first, 0, 1)), piece((other, 0, 1))])
    merge(text, tmp_path / "out")
    found, dense = read_model(tmp_path / "out"), read_model(root / "fp8_block-dense")
    for layer in (0, 1):
        expected = dense["model.layers.0.mlp.up_proj.weight"].bfloat16()
        assert torch.equal(found[f"model.layers.{layer}.mlp.up_proj.weight"], expected)
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


def test_files_about_quantisation_are_not_taken_over(models, tmp_path):
    root, _ = models("fp8_tensor")
    other = other_settings(root, "fp8_tensor", tmp_path / "other")
    for name in ("hf_quant_config.json", "quantize_config.json", "generation_config.json"):
        (other / name).write_text("{}")
    merge(recipe("linear", [other]), tmp_path / "merged")
    merge(recipe("passthrough", [other]), tmp_path / "copied")
    both = [{file.name for file in (tmp_path / out).glob("*.json")} for out in ("merged", "copied")]
    assert both[1] - both[0] == {"hf_quant_config.json", "quantize_config.json"}
    assert "generation_config.json" in both[0]


def test_what_is_said_about_activations_is_left_over_with_a_reason(models, tmp_path):
    root, stored = models("fp8_tensor")
    told = merge(recipe("linear", [root / "fp8_tensor"]), tmp_path / "out")
    (left,) = told.report["left_over"]
    assert set(left["tensors"]) == {name for name in stored if name.endswith("input_scale")}
    assert "activations" in left["reason"]


def test_other_quantisation_is_refused_only_where_something_is_computed(models, tmp_path):
    root, _ = models("fp8_plain")
    config = llama_config(**SIZES, quantization_config={"quant_method": "gptq"})
    stored = random_tensors(llama_shapes(config), 3)
    write_model(tmp_path / "gptq", stored, config)
    with pytest.raises(UnsupportedError, match=r"is quantised \(gptq\)") as caught:
        merge(recipe("linear", [root / "plain", tmp_path / "gptq"]), tmp_path / "merged")
    assert str(tmp_path / "gptq") in str(caught.value)
    merge(recipe("passthrough", [tmp_path / "gptq"]), tmp_path / "copied")
    same(read_model(tmp_path / "copied"), stored)


def test_settings_go_and_the_rest_of_the_text_stays(models, tmp_path):
    root, _ = models("int8_rows")
    text = (root / "int8_rows" / "config.json").read_text()
    merge(recipe("linear", [root / "int8_rows"], dtype="bfloat16"), tmp_path / "out")
    kept = json.loads(text)
    del kept["quantization_config"]
    assert (tmp_path / "out" / "config.json").read_text() == json.dumps(kept, indent=2)


# GPT-OSS


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    """A tiny GPT-OSS in MXFP4, and the same model as transformers builds it from what it reads."""
    from transformers import GptOssConfig, GptOssForCausalLM
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    root = tmp_path_factory.mktemp("gpt_oss")
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=48,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    )
    model = GptOssForCausalLM(config).to(torch.bfloat16).eval()
    stored = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = stored.pop(name).shape
        stored[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16)).byte()
        stored[f"{name}_scales"] = torch.randint(119, 124, (experts, outputs, inputs // 32)).byte()
        dense = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
        model.get_parameter(name).data.copy_(dense)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    content = {**config.to_dict(), "dtype": "bfloat16", "quantization_config": settings}
    write_model(root / "packed", stored, content)
    model.save_pretrained(root / "dense")
    return root, dict(model.state_dict()), stored


def test_gpt_oss_is_what_transformers_reads(gpt_oss, tmp_path):
    from transformers import GptOssForCausalLM

    root, dense, _ = gpt_oss
    merge(recipe("linear", [root / "packed"]), tmp_path / "out")
    found, told = GptOssForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(told.values()), told
    same(dict(found.state_dict()), dense)
    expected = GptOssForCausalLM.from_pretrained(root / "dense", dtype="auto")
    ids = torch.arange(12).reshape(1, -1)
    with torch.no_grad():
        assert torch.equal(found(ids).logits, expected(ids).logits)


def test_gpt_oss_is_copied_packed(gpt_oss, tmp_path):
    root, _, stored = gpt_oss
    merge(recipe("passthrough", [root / "packed"]), tmp_path / "out")
    same(read_model(tmp_path / "out"), stored)


def test_gpt_oss_goes_with_its_dequantised_fine_tune(gpt_oss, tmp_path):
    root, dense, _ = gpt_oss
    told = merge(recipe("linear", [root / "packed", root / "dense"]), tmp_path / "out")
    same(read_model(tmp_path / "out"), dense)  # the average of equal numbers
    assert {task.out.dtype.name for task in told.plan.tasks} == {"BF16"}
    assert not told.report["left_over"]
