"""Parts that predict tokens beyond the next one: merged if all models have them, else those of the base."""

import json

import pytest
import torch
from tiny_checkpoints import (
    assert_rounded,
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

from mergekit.errors import MissingTensorError

LAYERS = 3


def behind(prefix="model.layers"):
    """The layer behind the last one (DeepSeek-V3, GLM-4-MoE), with an embedding and a head of its own."""
    parts = {
        "enorm.weight": (32,),
        "hnorm.weight": (32,),
        "eh_proj.weight": (32, 64),
        "embed_tokens.weight": (64, 32),
        "self_attn.q_proj.weight": (32, 32),
        "shared_head.norm.weight": (32,),
        "shared_head.head.weight": (64, 32),
    }
    return {f"{prefix}.{LAYERS}.{name}": shape for name, shape in parts.items()}


def beside():
    """A small stack with a name of its own (Qwen3-Next, Qwen3.5)."""
    parts = {
        "fc.weight": (32, 64),
        "norm.weight": (32,),
        "pre_fc_norm_embedding.weight": (32,),
        "pre_fc_norm_hidden.weight": (32,),
        "layers.0.self_attn.q_proj.weight": (32, 32),
        "layers.0.mlp.up_proj.weight": (48, 32),
    }
    return {f"mtp.{name}": shape for name, shape in parts.items()}


def vision(prefix):
    suffixes = ("self_attn.q_proj.weight", "mlp.fc1.weight")
    return {f"{prefix}.encoder.layers.{layer}.{suffix}": (16, 16) for layer in range(2) for suffix in suffixes}


def within(text, head="lm_head.weight"):
    """Names of a language model inside a vision-language model."""

    def renamed(name):
        return head if name == "lm_head.weight" else text + name.removeprefix("model.") if "model" in name else name

    return renamed


def plain(name):
    return name


KINDS = {
    "behind": (plain, behind(), {}),
    "beside": (plain, beside(), {}),
    "behind, in a larger model": (
        within("model.language_model."),
        behind("model.language_model.layers"),
        vision("model.visual"),
    ),
    "behind, in an older larger model": (
        within("language_model.model.", "language_model.lm_head.weight"),
        behind("language_model.model.layers"),
        vision("vision_tower.vision_model"),
    ),
    "beside, in a larger model": (within("model.language_model."), beside(), vision("model.visual")),
}


def config_of(larger, predicts):
    text = llama_config(layers=LAYERS, **({"num_nextn_predict_layers": 1} if predicts else {}))
    if not larger:
        return text
    tower = {"model_type": "v", "num_hidden_layers": 2}
    return {"model_type": "odd_vl", "text_config": text, "vision_config": tower, "torch_dtype": "float32"}


@pytest.fixture
def write(tmp_path):
    """Write a model of a kind, or only its language model without further predictions; returns its tensors."""

    def make(name, kind, whole=True, without=()):
        renamed, further, more = KINDS[kind]
        language = llama_shapes(llama_config(layers=LAYERS))
        shapes = language
        if whole:
            shapes = {renamed(key): shape for key, shape in language.items()} | further | more
        shapes = {key: shape for key, shape in shapes.items() if key not in without}
        tensors = random_tensors(shapes, sum(map(ord, name)))
        # Their configs count layers that they do not have: fine-tuning libraries drop the tensors only.
        write_model(tmp_path / name, tensors, config_of(whole and bool(more), True))
        return tensors

    return make


def read_config(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_they_come_from_the_base_if_a_model_lacks_them(kind, write, tmp_path):
    renamed, further, more = KINDS[kind]
    base, text = write("base", kind), write("text", kind, whole=False)
    watch = merge(recipe("linear", [tmp_path / "base", tmp_path / "text"]), tmp_path / "out")
    found = read_model(tmp_path / "out")
    assert found.keys() == base.keys()
    for name in further | more:
        assert octets(found[name]) == octets(base[name])
    for name, tensor in text.items():
        assert_rounded(found[renamed(name)], (base[renamed(name)].double() + tensor.double()) / 2)
    taken = [notice for notice in watch.notices if notice.startswith("`multi_token_prediction` is taken from")]
    assert taken == [f"`multi_token_prediction` is taken from {tmp_path / 'base'}: it is not in {tmp_path / 'text'}"]
    assert watch.warnings == []
    assert watch.report["left_over"] == []
    assert read_config(tmp_path / "out") == read_config(tmp_path / "base")


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_merged_if_all_models_have_them(kind, write, tmp_path):
    models = [write(name, kind) for name in "ab"]
    watch = merge(recipe("linear", [tmp_path / "a", tmp_path / "b"]), tmp_path / "out")
    found = read_model(tmp_path / "out")
    assert found.keys() == models[0].keys()
    for name, tensor in found.items():
        assert_rounded(tensor, (models[0][name].double() + models[1][name].double()) / 2)
    assert (watch.notices, watch.warnings) == ([], [])


@pytest.mark.parametrize("kind", ["behind", "beside"])
def test_a_base_without_them_gives_a_model_without_them(kind, write, tmp_path):
    text = write("text", kind, whole=False)
    write("whole", kind)
    watch = merge(recipe("linear", [tmp_path / "text", tmp_path / "whole"]), tmp_path / "out")
    assert read_model(tmp_path / "out").keys() == text.keys()
    (left,) = watch.report["left_over"]
    assert left["reason"] == f"`multi_token_prediction` is no part of {tmp_path / 'text'}, and so none of the output"
    assert set(left["tensors"]) == set(KINDS[kind][1])


@pytest.mark.parametrize("kind", ["behind", "beside"])
def test_slices_keep_those_of_the_base_behind_the_last_layer(kind, write, tmp_path):
    base = write("base", kind)
    write("other", kind)
    slices = [piece((tmp_path / "base", 0, 3)), piece((tmp_path / "other", 1, 3))]
    settings = {"slices": slices, "base_model": str(tmp_path / "base")}
    watch = merge(recipe("passthrough", **settings), tmp_path / "out")
    found = read_model(tmp_path / "out")
    for name in KINDS[kind][1]:
        moved = name.replace(f"model.layers.{LAYERS}.", "model.layers.5.")
        assert octets(found[moved]) == octets(base[name])
    assert len([name for name in found if name.startswith("model.layers.5.")]) == (7 if kind == "behind" else 0)
    config = read_config(tmp_path / "out")
    assert (config["num_hidden_layers"], config["num_nextn_predict_layers"]) == (5, 1)
    assert watch.notices == [f"`multi_token_prediction` is taken from {tmp_path / 'base'}: it is no part of the slices"]


def test_recipes_can_name_them(write, tmp_path):
    a, b = write("a", "behind"), write("b", "behind")
    modules = {
        "default": {"models": [{"model": str(tmp_path / "a")}]},
        "mtp": {"models": [{"model": str(tmp_path / "b")}]},
    }
    merge(recipe("passthrough", modules=modules), tmp_path / "out")
    found = read_model(tmp_path / "out")
    for name, tensor in found.items():
        assert octets(tensor) == octets((b if name in behind() else a)[name])


def test_a_head_of_their_own_is_not_made_up(write, tmp_path):
    """The embedding stands in for a model's head, not for that of its further predictions."""
    head = f"model.layers.{LAYERS}.shared_head.head.weight"
    a = write("a", "behind")
    write("b", "behind", without={head})
    with pytest.raises(MissingTensorError, match=r"shared_head\.head\.weight"):
        merge(recipe("linear", [tmp_path / "a", tmp_path / "b"]), tmp_path / "out")
    merge(recipe("linear", [tmp_path / "a", tmp_path / "b"], on_missing="base"), tmp_path / "out")
    assert octets(read_model(tmp_path / "out")[head]) == octets(a[head])


def test_a_tied_model_stays_tied_whatever_predicts_further(tmp_path):
    config = llama_config(layers=LAYERS, tied=True, num_nextn_predict_layers=1)
    for name in "ab":
        write_model(tmp_path / name, random_tensors(llama_shapes(config) | behind(), ord(name)), config)
    merge(recipe("linear", [tmp_path / "a", tmp_path / "b"]), tmp_path / "out")
    assert "lm_head.weight" not in read_model(tmp_path / "out")
    assert read_config(tmp_path / "out") == config
    assert torch.isfinite(read_model(tmp_path / "out")["model.norm.weight"]).all()
