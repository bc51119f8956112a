"""Acceptance checks L1 to L3: what is extracted loads in peft, and the base with it is the fine-tune."""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_tuned import (
    assert_restored,
    extract,
    gpt2,
    gpt_oss,
    llama,
    load,
    logits,
    merged,
    mixtral,
    qwen2,
    qwen3_moe,
    save,
    tune,
)

from mergekit.errors import IncompatibleModelsError, UnsupportedError
from mergekit.lora import Choice, Wish, plan_extraction
from mergekit.recipe import reference

FUSED = {"save_original_format": False}


@pytest.fixture(autouse=True, scope="module")
def modest_transformers():
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def pair(folder, make, only="", change=None, rank=3, **settings):
    """A base and a fine-tune that differs by matrices of low rank; returns the latter."""
    save(make(), folder / "base", **settings)
    tuned = tune(make(), rank, only)
    if change:
        change(tuned)
    save(tuned, folder / "tuned", **settings)
    return tuned


def settings_of(folder):
    return json.loads((folder / "adapter" / "adapter_config.json").read_text())


def tensors_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("embed_lora", [False, True])
@pytest.mark.parametrize("distribute", [True, False])
def test_l1_merging_in_peft_restores_the_weights(distribute, embed_lora, tmp_path):
    tuned = pair(tmp_path, llama)
    report = extract(tmp_path, distribute=distribute, embed_lora=embed_lora)
    assert report["check"]["relative_error"] < 1e-6
    assert_restored(merged(tmp_path), tuned, 1e-6)
    torch.testing.assert_close(logits(load(tmp_path)), logits(tuned), rtol=0, atol=2e-5)
    assert ("base_model.model.model.embed_tokens.lora_embedding_A" in tensors_of(tmp_path)) == embed_lora


def test_l1_epsilon_finds_the_rank(tmp_path):
    tuned = pair(tmp_path, llama, only="_proj")
    report = extract(tmp_path, epsilon=1e-3)
    assert {module["rank"] for module in report["modules"] if module["held"] == "products"} == {3}
    assert settings_of(tmp_path)["r"] == settings_of(tmp_path)["lora_alpha"] == 3
    assert not settings_of(tmp_path)["rank_pattern"]
    assert_restored(merged(tmp_path), tuned, 1e-6)


def test_l1_a_lower_rank_is_as_far_off_as_the_report_says(tmp_path):
    tuned = pair(tmp_path, llama, only="_proj")
    base = llama().state_dict()
    report = extract(tmp_path, rank=2)
    found, wanted = merged(tmp_path).state_dict(), tuned.state_dict()
    for module in report["modules"]:
        if module["held"] == "products":
            name = module["module"] + ".weight"
            off = (found[name] - wanted[name]).norm() / (wanted[name] - base[name]).norm()
            assert float(off) == pytest.approx(module["relative_error"], rel=1e-3)
            assert module["energy"] == pytest.approx(1 - float(off) ** 2, abs=1e-4)
    assert report["totals"]["energy"] < 1


def test_l2_ranks_of_their_own_for_matrices_with_fewer_rows(tmp_path):
    tuned = pair(tmp_path, llama, only="_proj", rank=40)
    extract(tmp_path)
    settings = settings_of(tmp_path)
    fewer = {f"model.layers.{layer}.self_attn.{leaf}": 16 for layer in range(2) for leaf in ("k_proj", "v_proj")}
    assert settings["r"] == 32
    assert settings["rank_pattern"] == settings["alpha_pattern"] == fewer
    assert len(settings["target_modules"]) == 14
    assert all(name.startswith("model.layers.") for name in settings["target_modules"])
    assert_restored(merged(tmp_path), tuned, 1e-6)


def test_l2_identical_models_are_refused(tmp_path):
    save(llama(), tmp_path / "base")
    save(llama(), tmp_path / "tuned")
    with pytest.raises(IncompatibleModelsError, match="the models do not differ"):
        extract(tmp_path)
    assert not (tmp_path / "adapter").exists()
    assert not (tmp_path / "adapter.partial").exists()


def test_l2_nothing_above_epsilon_is_refused(tmp_path):
    pair(tmp_path, llama, only="_proj")
    with pytest.raises(IncompatibleModelsError, match="no singular value is above 1000"):
        extract(tmp_path, epsilon=1000.0)


def test_l2_only_norms_differ(tmp_path):
    pair(tmp_path, llama, only="norm")
    with pytest.raises(IncompatibleModelsError, match=r"no matrix differs, only model\.layers\.0\.input_layernorm"):
        extract(tmp_path)


BIASED = {
    "every product has one": (lambda: llama(attention_bias=True, mlp_bias=True), True),
    "queries, keys and values have one": (qwen2, False),
}


@pytest.mark.parametrize("case", BIASED)
def test_l2_biases_are_restored(case, tmp_path):
    make, offsets = BIASED[case]
    tuned = pair(tmp_path, make)
    extract(tmp_path)
    settings = settings_of(tmp_path)
    assert (settings["lora_bias"], settings["bias"]) == ((True, "none") if offsets else (False, "lora_only"))
    torch.testing.assert_close(logits(load(tmp_path)), logits(tuned), rtol=0, atol=2e-5)
    assert_restored(merged(tmp_path), tuned, 1e-6)


def test_l2_a_bias_alone_makes_its_module_whole(tmp_path):
    tuned = pair(tmp_path, qwen2, only="o_proj", change=lambda model: tune(model, only="0.self_attn.k_proj.bias"))
    extract(tmp_path)
    assert settings_of(tmp_path)["modules_to_save"] == ["model.layers.0.self_attn.k_proj"]
    assert_restored(merged(tmp_path), tuned, 1e-6)


CHOICES = {
    "include": ({"include": (re.compile("self_attn"),)}, ["q_proj", "k_proj", "v_proj", "o_proj"], []),
    "exclude": (
        {"exclude": (re.compile(r"layers\.1\."), re.compile("mlp|norm|embed|head"))},
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        [],
    ),
    "both": ({"include": (re.compile("self_attn"),), "exclude": (re.compile("[kv]_proj"),)}, ["q_proj", "o_proj"], []),
    "save a module by its last name": (
        {"save": ("o_proj",), "include": (re.compile("q_proj"),)},
        ["q_proj"],
        ["o_proj"],
    ),
    "save a module by its full name": (
        {"save": ("model.layers.1.self_attn.o_proj",), "include": (re.compile("q_proj"),)},
        ["q_proj"],
        ["o_proj"],
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_l2_only_what_is_asked_for_is_adapted(case, tmp_path):
    choice, adapted, whole = CHOICES[case]
    tuned = pair(tmp_path, llama)
    report = extract(tmp_path, **choice)
    settings = settings_of(tmp_path)
    assert {name.rpartition(".")[2] for name in settings["target_modules"]} == set(adapted)
    assert {name.rpartition(".")[2] for name in settings["modules_to_save"] or []} == set(whole)
    assert [entry["reason"] for entry in report["left_out"]] == ["they are excluded"]
    found, base, wanted = merged(tmp_path).state_dict(), llama().state_dict(), tuned.state_dict()
    held = {*settings["target_modules"], *(settings["modules_to_save"] or [])}
    for name, tensor in found.items():
        expected = wanted if name.removesuffix(".weight") in held else base
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    if "full" in case:
        assert settings["modules_to_save"] == ["model.layers.1.self_attn.o_proj"]


def test_l2_norms_are_left_out_if_asked_for(tmp_path):
    tuned = pair(tmp_path, llama)
    report = extract(tmp_path, skip_whole=True, embed_lora=True)
    assert settings_of(tmp_path)["modules_to_save"] is None
    [left] = report["left_out"]
    assert left["reason"] == "they cannot be decomposed"
    assert all("norm" in name for name in left["tensors"])
    assert_restored(merged(tmp_path), tuned, 1e-6, but=["norm"])


def test_l2_everything_is_excluded(tmp_path):
    pair(tmp_path, llama)
    with pytest.raises(UnsupportedError, match="no matrix to decompose: 21 tensors are left out, as they are excluded"):
        extract(tmp_path, include=(re.compile("nothing is called so"),))


def test_l3_gpt2_has_its_matrices_transposed(tmp_path):
    tuned = pair(tmp_path, gpt2)
    extract(tmp_path)
    settings = settings_of(tmp_path)
    assert settings["fan_in_fan_out"]
    assert settings["lora_bias"]
    assert tensors_of(tmp_path)["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape == (3, 32)
    assert tensors_of(tmp_path)["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"].shape == (96, 3)
    torch.testing.assert_close(logits(load(tmp_path)), logits(tuned), rtol=0, atol=2e-5)
    assert_restored(merged(tmp_path), tuned, 1e-6)


def test_l3_gpt2_as_the_hub_has_it(tmp_path):
    """Without the prefix that the model with a head puts before its names."""
    tuned = pair(tmp_path, gpt2)
    for folder in ("base", "tuned"):
        file = tmp_path / folder / "model.safetensors"
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    extract(tmp_path)
    assert_restored(merged(tmp_path), tuned, 1e-6)


MIXTURES = {
    "mixtral, expert by expert": (mixtral, {}),
    "mixtral, fused": (mixtral, FUSED),
    "qwen3, expert by expert": (qwen3_moe, {}),
    "qwen3, fused": (qwen3_moe, FUSED),
}


@pytest.mark.parametrize("case", MIXTURES)
def test_l3_mixtures_of_experts(case, tmp_path):
    make, settings = MIXTURES[case]
    tuned = pair(tmp_path, make, **settings)
    assert ("mlp.experts.gate_up_proj" in " ".join(load_file(tmp_path / "base" / "model.safetensors"))) == bool(
        settings
    )
    extract(tmp_path)
    assert ("target_parameters" in settings_of(tmp_path)) == bool(settings)
    torch.testing.assert_close(logits(load(tmp_path)), logits(tuned), rtol=0, atol=5e-5)
    assert_restored(merged(tmp_path), tuned)


@pytest.mark.parametrize("only", ["experts.down_proj", "experts.gate_up_proj"])
def test_l3_one_of_two_fused_tensors(only, tmp_path):
    tuned = pair(tmp_path, qwen3_moe, only=only, **FUSED)
    report = extract(tmp_path, epsilon=1e-3)
    assert report["totals"]["rank"] == 3
    assert_restored(merged(tmp_path), tuned)


def test_l3_one_expert_of_many(tmp_path):
    """Experts that did not change get products of nothing, since peft wants all of a layer."""
    tuned = pair(tmp_path, mixtral, only="q_proj", change=lambda model: tune(model.model.layers[0], only="down_proj"))
    extract(tmp_path, epsilon=1e-3)
    assert_restored(merged(tmp_path), tuned)


def test_l3_experts_stored_with_their_inputs_first(tmp_path):
    """And with biases that no adapter of peft can hold: they are named, and left out."""
    tuned = pair(tmp_path, gpt_oss, only="_proj")
    report = extract(tmp_path, epsilon=1e-3)
    [left] = report["left_out"]
    assert left["reason"] == "they are neither the weight nor the bias of a module"
    assert {name.rpartition(".")[2] for name in left["tensors"]} == {"sinks", "gate_up_proj_bias", "down_proj_bias"}
    assert any("gate_up_proj_bias" in warning for warning in report["warnings"])
    assert_restored(merged(tmp_path), tuned, but=["_proj_bias"])


@pytest.mark.parametrize("embed_lora", [False, True])
def test_tied_embeddings_stay_tied(embed_lora, tmp_path):
    tuned = pair(tmp_path, lambda: llama(tie_word_embeddings=True))
    report = extract(tmp_path, embed_lora=embed_lora)
    assert not any("lm_head" in name for name in tensors_of(tmp_path))
    found = merged(tmp_path)
    assert_restored(found, tuned, 1e-6)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert any("merged" in notice for notice in report["notices"]) == embed_lora
    if not embed_lora:
        torch.testing.assert_close(logits(load(tmp_path)), logits(tuned), rtol=0, atol=2e-5)


def test_a_head_that_the_fine_tune_has_of_its_own(tmp_path):
    save(llama(tie_word_embeddings=True), tmp_path / "base")
    tuned = tune(llama(), only="proj")
    tuned.model.embed_tokens.load_state_dict(llama(tie_word_embeddings=True).model.embed_tokens.state_dict())
    save(tuned, tmp_path / "tuned")
    extract(tmp_path)
    assert settings_of(tmp_path)["modules_to_save"] == ["lm_head"]
    torch.testing.assert_close(logits(load(tmp_path)), logits(tuned), rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_of_the_vocabulary(tied, tmp_path):
    tuned = pair(
        tmp_path,
        lambda: llama(tie_word_embeddings=tied),
        only="_proj",
        change=lambda model: model.resize_token_embeddings(70, mean_resizing=False),
    )
    report = extract(tmp_path)
    assert report["resized"] == [67, 70]
    assert any("resize the base to 70" in warning for warning in report["warnings"])
    wish = Wish(choice=Choice(embed_lora=True))
    planned = plan_extraction(reference(str(tmp_path / "base")), reference(str(tmp_path / "tuned")), wish)
    assert any("`--embed-lora` has no effect" in problem.what for problem in planned.pairs.findings.warnings)
    assert "resize_token_embeddings(70)" in (tmp_path / "adapter" / "README.md").read_text()
    rows = {"model.embed_tokens": [67, 68, 69], **({} if tied else {"lm_head": [67, 68, 69]})}
    assert settings_of(tmp_path)["trainable_token_indices"] == rows
    torch.testing.assert_close(logits(load(tmp_path, rows=70)), logits(tuned), rtol=0, atol=2e-5)
    assert_restored(merged(tmp_path, rows=70), tuned, 1e-6)


def test_a_few_rows_of_the_vocabulary(tmp_path):
    def change(model):
        with torch.no_grad():
            model.model.embed_tokens.weight[[3, 60]] += 1
            model.lm_head.weight[5:6] += 1

    tuned = pair(tmp_path, llama, only="_proj", change=change)
    extract(tmp_path)
    assert settings_of(tmp_path)["trainable_token_indices"] == {"model.embed_tokens": [3, 60], "lm_head": [5]}
    assert settings_of(tmp_path)["modules_to_save"] is None
    assert_restored(merged(tmp_path), tuned, 1e-6)
