"""Adapters of fused experts (`target_parameters`), against what peft merges."""

import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_checkpoints import merge, read_model, recipe, write_model

from mergekit.checkpoint import Files, read_header
from mergekit.errors import RecipeError
from mergekit.plan.views import view_of
from mergekit.plan.views.expert_products import ManyLowRank
from mergekit.report.rooms import Room

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

SIZES = {"vocab_size": 67, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def qwen3(hidden=32, inner=24):
    config = transformers.Qwen3MoeConfig(
        **SIZES,
        hidden_size=hidden,
        moe_intermediate_size=inner,
        intermediate_size=56,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        num_experts=3,
        num_experts_per_tok=2,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_oss(hidden=32, inner=24):
    config = transformers.GptOssConfig(
        **SIZES,
        hidden_size=hidden,
        intermediate_size=inner,
        num_local_experts=3,
        num_experts_per_tok=2,
        layer_types=["full_attention"] * 2,
    )
    return transformers.GptOssForCausalLM(config)


@pytest.fixture
def trained(tmp_path):
    """Write a base with fused experts and an adapter for it; return what peft makes of both."""

    def train(base, **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers.utils.logging.disable_progress_bar()
            base.save_pretrained(tmp_path / "base", save_original_format=False)
            model = peft.get_peft_model(base, peft.LoraConfig(**settings))
            draw = torch.Generator().manual_seed(7)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
            model.save_pretrained(tmp_path / "adapter")
            loaded = type(base).from_pretrained(tmp_path / "base", dtype=torch.float32)
            return peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").merge_and_unload().state_dict()

    return train


BOTH = ["experts.gate_up_proj", "experts.down_proj"]
FEATURES = {
    "both": (qwen3, {"target_modules": [], "target_parameters": BOTH}),
    "one": (qwen3, {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}),
    "scaled": (qwen3, {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": [], "target_parameters": BOTH}),
    "ranks of their own": (
        qwen3,
        {
            "target_modules": ["q_proj"],
            "target_parameters": BOTH,
            "r": 2,
            "rank_pattern": {"1.mlp.experts.gate_up_proj": 5},
            "alpha_pattern": {"down_proj": 3},
        },
    ),
    "in one layer": (qwen3, {"target_modules": [], "target_parameters": ["layers.1.mlp.experts.gate_up_proj"]}),
    "inputs first": (gpt_oss, {"target_modules": [], "target_parameters": BOTH}),
    "square": (lambda: qwen3(32, 32), {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
    "square, inputs first": (
        lambda: gpt_oss(32, 32),
        {"target_modules": [], "target_parameters": ["experts.down_proj"]},
    ),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_adapters_of_fused_experts(feature, trained, tmp_path):
    make, settings = FEATURES[feature]
    expected = trained(make(), **settings)
    merge(recipe("passthrough", [f"{tmp_path}/base+{tmp_path}/adapter"]), tmp_path / "out")
    found, base = read_model(tmp_path / "out"), read_model(tmp_path / "base")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    changed = {name.rpartition(".")[2] for name in found if not torch.equal(found[name], base[name])}
    targets = [*settings["target_modules"], *settings["target_parameters"]]
    assert {leaf.replace("weight", "q_proj") for leaf in changed} == {name.rpartition(".")[2] for name in targets}


def test_a_wrong_rank_is_refused(trained, tmp_path):
    trained(qwen3(), r=4, target_modules=[], target_parameters=["experts.down_proj"])
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "r": 5}))
    with pytest.raises(RecipeError, match=r"make no products of rank 5 for `.*\.0\.mlp\.experts\.down_proj`"):
        merge(recipe("passthrough", [f"{tmp_path}/base+{tmp_path}/adapter"]), tmp_path / "out")


@pytest.mark.parametrize("value", ["experts", [1], [""], {"a": 1}])
def test_names_that_are_none_are_refused(value, tmp_path):
    write_model(tmp_path / "base", {"q_proj.weight": torch.zeros(4, 4)}, {})
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"base_model.model.q_proj.lora_A.weight": torch.ones(1, 4)}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "target_parameters": value}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="`target_parameters` of the adapter is"):
        merge(recipe("passthrough", [f"{tmp_path}/base+{folder}"]), tmp_path / "out")


@pytest.mark.parametrize("transposed", [False, True])
def test_a_stretch_does_not_depend_on_where_it_begins(transposed, tmp_path):
    draw = torch.Generator().manual_seed(1)
    shapes = {"w": (3, 4, 5) if transposed else (3, 5, 4), "a": (6, 4), "b": (5, 6)}
    save_file({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, tmp_path / "t.safetensors")
    stored = {one.spec.name: one for one in read_header(tmp_path / "t.safetensors").tensors}
    view = ManyLowRank(view_of(stored["w"]), view_of(stored["a"]), view_of(stored["b"]), 0.5, transposed)
    w, a, b = (load_file(tmp_path / "t.safetensors")[name].numpy() for name in "wab")
    products = np.einsum("ore,eri->eoi", b.reshape(5, 2, 3), a.reshape(3, 2, 4))
    wanted = w + 0.5 * (products.swapaxes(1, 2) if transposed else products)
    with Files() as files:
        whole = np.empty(60, np.float32)
        view.read(Room(files), 0, 60, whole)
        np.testing.assert_allclose(whole.reshape(wanted.shape), wanted, atol=1e-6)
        for start, stop in ((0, 1), (7, 33), (19, 21), (40, 60), (20, 20)):
            part = np.empty(stop - start, np.float32)
            view.read(Room(files), start, stop, part)
            assert part.tobytes() == whole[start:stop].tobytes()
    assert view.nbytes == 4 * (60 + 24 + 30)
    assert {extent.file for extent in view.extents(3, 9)} == {tmp_path / "t.safetensors"}
