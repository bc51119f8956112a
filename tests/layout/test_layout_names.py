from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_families import family

from mergekit.layout import align_names, derived_buffer


@pytest.mark.parametrize(
    ("name", "prefix"), [("gpt2", "transformer."), ("bert", "bert."), ("llama", "model."), ("mamba", "backbone.")]
)
def test_a_prefix_more_or_less_makes_names_meet(name: str, prefix: str) -> None:
    donor = list(family(name).shapes)
    own = any(tensor.startswith(prefix) for tensor in donor)
    other = {tensor.removeprefix(prefix) if own else prefix + tensor: tensor for tensor in donor}
    assert align_names(list(other), donor) == other
    assert align_names(donor, list(other)) == {tensor: renamed for renamed, tensor in other.items()}


def test_old_names_of_layer_norms_meet_the_new_ones() -> None:
    donor = list(family("bert_masked_lm").shapes)
    other = {
        tensor.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for tensor in donor
    }
    assert sum(".gamma" in tensor for tensor in other) == 10
    assert align_names(list(other), donor) == other
    without_prefix = {renamed.removeprefix("bert."): tensor for renamed, tensor in other.items()}
    assert align_names(list(without_prefix), donor) == without_prefix


def test_names_that_meet_nothing_stay() -> None:
    donor = ["model.norm.weight", "lm_head.weight"]
    assert align_names(["norm.weight", "extra.weight", "lm_head.weight"], donor) == {
        "norm.weight": "model.norm.weight",
        "extra.weight": "extra.weight",
        "lm_head.weight": "lm_head.weight",
    }


def test_a_layer_number_is_no_prefix() -> None:
    assert align_names(["w.weight"], ["layers.0.w.weight"]) == {"w.weight": "w.weight"}


def test_two_names_never_meet_the_same_one() -> None:
    names = ["norm.gamma", "norm.weight", "bert.norm.gamma"]
    aligned = align_names(names, ["bert.norm.weight"])
    assert sorted(aligned.values()).count("bert.norm.weight") == 1


components = st.sampled_from(["a", "b", "norm", "layers", "0", "1", "attn"])
tensor_names = st.builds(
    lambda parts, leaf: ".".join(["x", *parts, leaf]),
    st.lists(components, max_size=4),
    st.sampled_from(["weight", "bias"]),
)


@given(st.sets(tensor_names, min_size=1, max_size=12), st.sampled_from(["", "model.", "p.q."]), st.booleans())
def test_a_renamed_copy_maps_back(donor: set[str], prefix: str, old_norms: bool) -> None:
    def rename(name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        old = {"weight": "gamma", "bias": "beta"}[leaf] if old_norms and stem.endswith("norm") else leaf
        return f"{prefix}{stem}.{old}"

    renamed = {rename(name): name for name in sorted(donor)}
    assert align_names(list(renamed), sorted(donor)) == renamed


@given(st.sets(tensor_names, max_size=12), st.sets(tensor_names, max_size=12))
def test_equal_names_stay_and_nothing_is_lost(names: set[str], donor: set[str]) -> None:
    aligned = align_names(sorted(names), sorted(donor))
    assert list(aligned) == sorted(names)
    assert all(aligned[name] == name for name in names & donor)
    met = [target for target in aligned.values() if target in donor]
    assert len(met) == len(set(met))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
        ("model.rotary_emb.inv_freq", (4,)),
        ("transformer.rotary_pos_emb.inv_freq", (4,)),
        ("gpt_neox.layers.0.attention.masked_bias", ()),
        ("gpt_neox.layers.0.attention.bias", (1, 1, 8, 8)),
        ("transformer.h.0.attn.bias", (1, 1, 8, 8)),
        ("bert.embeddings.position_ids", (1, 512)),
    ],
)
def test_buffers_have_a_reason(name: str, shape: tuple[int, ...]) -> None:
    reason = derived_buffer(name, shape)
    assert reason is not None
    assert "loaders" in reason


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("transformer.h.0.attn.bias", (24,)),
        ("transformer.h.0.attn.bias", (1, 1, 8, 4)),
        ("transformer.h.0.attn.c_attn.bias", (24,)),
        ("embeddings.position_embeddings.weight", (512, 8)),
        ("model.layers.0.self_attn.q_proj.bias", (8,)),
    ],
)
def test_weights_are_no_buffers(name: str, shape: tuple[int, ...]) -> None:
    assert derived_buffer(name, shape) is None
