"""Text-only fine-tunes meet their vision-language siblings; parts that only one of them has come from the base."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_checkpoints import assert_rounded, merge, read_model, recipe

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 16,
}


@pytest.fixture(scope="module")
def siblings(tmp_path_factory):
    """A LLaVA model, its language model as a Llama model of its own, slightly changed, and LLaVA under older names."""
    root = tmp_path_factory.mktemp("siblings")
    torch.manual_seed(0)
    text, vision = transformers.LlamaConfig(**TEXT), transformers.CLIPVisionConfig(**VISION)
    config = {"vision_config": vision, "text_config": text, "image_token_index": 63, "vision_feature_layer": -1}
    llava = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**config))
    llava.save_pretrained(root / "llava")
    language = transformers.LlamaForCausalLM(text)
    stored = read_model(root / "llava")
    state = language.state_dict()
    for name in state:
        candidates = [other for other in stored if core(other) == core(name)]
        assert len(candidates) == 1, (name, candidates)
        state[name] = stored[candidates[0]] + 0.01 * torch.randn(state[name].shape)
    language.load_state_dict(state)
    language.save_pretrained(root / "text")
    (root / "new").mkdir()
    for file in (root / "llava").iterdir():
        if file.suffix == ".json":
            (root / "new" / file.name).write_bytes(file.read_bytes())
    save_file({newer(name): tensor for name, tensor in stored.items()}, root / "new" / "model.safetensors")
    assert set(load_file(root / "new" / "model.safetensors")) != set(stored)
    return root


def core(name):
    """What stands behind the words that say where the language model hangs."""
    return name.replace("language_model.", "").removeprefix("model.")


def newer(name):
    """A name in the other generation of LLaVA checkpoints."""
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return f"model.{name}"


def average(root, who, name):
    """The mean of a tensor of LLaVA and of what corresponds to it in another model; itself where nothing does."""
    own = read_model(root / "llava")[name].double()
    other = {core(key): tensor for key, tensor in read_model(root / who).items()}.get(core(name))
    return own.numpy() if other is None else ((own + other.double()) / 2).numpy()


def test_the_language_model_is_merged_and_the_rest_taken_from_the_base(siblings, tmp_path):
    text = recipe("linear", [siblings / "llava", siblings / "text"])
    watch = merge(text, tmp_path / "out")
    assert watch.warnings == []
    taken = sorted(notice.split("`")[1] for notice in watch.notices)
    assert taken == ["multi_modal_projector", "vision_tower"]
    found, base = read_model(tmp_path / "out"), read_model(siblings / "llava")
    assert set(found) == set(base)
    for name, tensor in found.items():
        assert_rounded(tensor, average(siblings, "text", name))
    merged = [name for name in found if not torch.equal(found[name], base[name])]
    assert {name for name in base if "vision" not in name and "projector" not in name} == set(merged)
    _, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_both_generations_of_names_meet(siblings, tmp_path):
    merge(recipe("linear", [siblings / "llava", siblings / "new"]), tmp_path / "out")
    base = read_model(siblings / "llava")
    found = read_model(tmp_path / "out")
    assert set(found) == set(base)
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, base[name], atol=1e-7)


def test_a_text_model_takes_the_language_part_of_its_sibling(siblings, tmp_path):
    merge(recipe("linear", [siblings / "text", siblings / "llava"]), tmp_path / "out")
    found, own = read_model(tmp_path / "out"), read_model(siblings / "text")
    assert set(found) == set(own)
    other = {core(name): tensor for name, tensor in read_model(siblings / "llava").items()}
    for name, tensor in found.items():
        assert_rounded(tensor, ((own[name].double() + other[core(name)].double()) / 2).numpy())


def test_slices_cut_the_language_model(siblings, tmp_path):
    pieces = [
        [{"model": str(siblings / "llava"), "layer_range": [0, 3]}],
        [{"model": str(siblings / "llava"), "layer_range": [1, 4]}],
    ]
    slices = [{"sources": piece} for piece in pieces]
    merge(recipe("passthrough", slices=slices), tmp_path / "out")
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.text_config.num_hidden_layers == 6
    assert model.config.vision_config.num_hidden_layers == 2
