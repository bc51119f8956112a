"""Adapters on models that are more than a stack of square layers."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import (
    assert_rounded,
    llama_config,
    llama_shapes,
    merge,
    mixtral,
    octets,
    random_tensors,
    read_model,
    recipe,
    write_model,
)
from tiny_quantised import FORMATS, settings_of


def write_adapter(folder, targets, rank=3, **settings):
    """Random factors for modules of these (out, in); the products by module."""
    random = torch.Generator().manual_seed(len(folder.name) + rank)
    tensors, products = {}, {}
    for module, (out, *ins) in targets.items():
        a = torch.randn(rank, *ins, generator=random)
        b = torch.randn(out, rank, *(1 for _ in ins[1:]), generator=random)
        tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        products[module] = 2 * (b.reshape(out, rank).double() @ a.reshape(rank, -1).double()).reshape(out, *ins)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return products


def assert_added(found, base, products):
    """Every module has its product on top, everything else is as it was."""
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        if (product := products.get(name.removesuffix(".weight"))) is None:
            assert octets(tensor) == octets(base[name])
        else:
            torch.testing.assert_close(tensor, (base[name].double() + product).float(), rtol=1e-6, atol=2e-6)


@pytest.fixture
def experts(tmp_path):
    """A model with three experts in each of two layers."""
    config, shapes = mixtral()
    write_model(tmp_path / "base", random_tensors(shapes, 1), config)
    return tmp_path / "base"


def test_experts_one_by_one(experts, tmp_path):
    stem = "model.layers.1.block_sparse_moe"
    targets = {f"{stem}.experts.0.w1": (48, 32), f"{stem}.experts.2.w2": (32, 48), f"{stem}.gate": (3, 32)}
    products = write_adapter(tmp_path / "adapter", targets)
    text = recipe("passthrough", [f"{experts}+{tmp_path}/adapter"])
    merge(text, tmp_path / "out")
    assert_added(read_model(tmp_path / "out"), read_model(experts), products)
    watch = merge(text, tmp_path / "fused", fuse_experts=True)
    assert sum(watch.bytes) == watch.plan.read_bytes + watch.plan.write_bytes
    parts, fused = read_model(tmp_path / "out"), read_model(tmp_path / "fused")
    own = [{w: parts[f"{stem}.experts.{expert}.{w}.weight"] for w in ("w1", "w2", "w3")} for expert in range(3)]
    new = "model.layers.1.mlp"
    assert torch.equal(fused[f"{new}.experts.gate_up_proj"], torch.stack([torch.cat([e["w1"], e["w3"]]) for e in own]))
    assert torch.equal(fused[f"{new}.experts.down_proj"], torch.stack([e["w2"] for e in own]))


def test_a_convolution_is_a_matrix_of_its_outputs(tmp_path):
    config = llama_config(layers=1)
    shapes = {**llama_shapes(config), "vision.patch_embed.weight": (16, 3, 4, 4)}
    base = random_tensors(shapes, 1)
    write_model(tmp_path / "base", base, config)
    products = write_adapter(tmp_path / "adapter", {"vision.patch_embed": (16, 3, 4, 4)})
    merge(recipe("passthrough", [f"{tmp_path}/base+{tmp_path}/adapter"]), tmp_path / "out")
    assert_added(read_model(tmp_path / "out"), base, products)


@pytest.mark.parametrize("flag", [True, False])
def test_a_square_matrix_without_bias_has_its_outputs_first(flag, tmp_path):
    """As peft has it: the flag is for layers of one kind, and those have biases."""
    config = llama_config(layers=1)
    base = random_tensors(llama_shapes(config), 1)
    write_model(tmp_path / "base", base, config)
    products = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": (32, 32)}, fan_in_fan_out=flag)
    merge(recipe("passthrough", [f"{tmp_path}/base+{tmp_path}/adapter"]), tmp_path / "out")
    assert_added(read_model(tmp_path / "out"), base, products)


def test_two_adapters_of_one_base_are_two_models(tmp_path):
    config = llama_config(layers=1)
    base = random_tensors(llama_shapes(config), 1)
    write_model(tmp_path / "base", base, config)
    module = "model.layers.0.mlp.up_proj"
    one, two = (write_adapter(tmp_path / name, {module: (48, 32)}) for name in ("a", "the other"))
    assert not torch.equal(one[module], two[module])
    references = [(f"{tmp_path}/base+{tmp_path}/{name}", {"weight": 1.0}) for name in ("a", "the other")]
    merge(recipe("task_arithmetic", references, base_model=str(tmp_path / "base")), tmp_path / "out")
    found = read_model(tmp_path / "out")
    assert_added(found, base, {module: one[module] + two[module]})


def test_slices_of_adapted_layers(tmp_path):
    config = llama_config(layers=3)
    base = random_tensors(llama_shapes(config), 1)
    write_model(tmp_path / "base", base, config)
    products = write_adapter(tmp_path / "adapter", {f"model.layers.{n}.mlp.up_proj": (48, 32) for n in range(3)})
    reference = f"{tmp_path}/base+{tmp_path}/adapter"
    sources = [{"sources": [{"model": reference, "layer_range": [first, 3]}]} for first in (0, 2)]
    merge(recipe("passthrough", slices=sources), tmp_path / "out")
    found = read_model(tmp_path / "out")
    last = "model.layers.2.mlp.up_proj"
    expected = (base[f"{last}.weight"].double() + products[last]).float()
    for layer in (2, 3):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=2e-6)


def test_an_adapter_of_a_language_model_on_a_model_that_sees(tmp_path):
    """Trained under the names that transformers gives in memory, applied to those of the files."""
    config = {"model_type": "llava", "text_config": llama_config(layers=2)}
    shapes = {f"language_model.{name}": shape for name, shape in llama_shapes(llama_config(layers=2)).items()}
    shapes["vision_tower.patch.weight"] = (8, 3, 2, 2)
    base = random_tensors(shapes, 1)
    write_model(tmp_path / "base", base, config)
    module = "layers.1.mlp.up_proj"
    products = write_adapter(tmp_path / "adapter", {f"model.language_model.{module}": (48, 32)})
    merge(recipe("passthrough", [f"{tmp_path}/base+{tmp_path}/adapter"]), tmp_path / "out")
    (product,) = products.values()
    assert_added(read_model(tmp_path / "out"), base, {f"language_model.model.{module}": product})


@pytest.mark.parametrize("form", ["nf4", "fp8_block"])
def test_a_quantised_base_is_unpacked_below_the_adapter(form, tmp_path):
    """As adapters are trained on models in four bits."""
    config = {**llama_config(layers=1, width=64, inner=128), **settings_of(form)}
    base = random_tensors(llama_shapes(config), 1, torch.bfloat16)
    module = "model.layers.0.mlp.up_proj"
    parts, dense = FORMATS[form][0](f"{module}.weight", base.pop(f"{module}.weight").float())
    write_model(tmp_path / "base", {**base, **parts}, config)
    products = write_adapter(tmp_path / "adapter", {module: (128, 64)})
    merge(recipe("passthrough", [f"{tmp_path}/base+{tmp_path}/adapter"]), tmp_path / "out")
    found = read_model(tmp_path / "out")
    assert found.keys() == base.keys() | {f"{module}.weight"}
    assert_rounded(found[f"{module}.weight"], dense.double() + products[module])
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
