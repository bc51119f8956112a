"""The acceptance checks of mixtures of experts: M1 to M6."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
import yaml
from moe_models import LAYERS, WIDTH, load, logits, tensors

from mergekit.errors import RecipeError
from mergekit.merging import JobOptions
from mergekit.moe import GateOptions, MoeOptions, build_moe, check_identity
from mergekit.plan import PlanOptions

PROMPTS = (["abc def", "Hello", "x = 1"], ["0123", "what is 4 + 4?"], ["the cat"])
GATE = "model.layers.{}.block_sparse_moe.gate.weight"
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"


def build(out, recipe, seed=0, workers=None, **more):
    """Build a mixture; returns its folder and its plan."""
    options = JobOptions(plan=PlanOptions(seed=seed, workers=workers))
    text = yaml.safe_dump(recipe, sort_keys=False)
    return out, build_moe(text, out, file="moe.yml", options=options, moe=MoeOptions(**more))[1]


def expert(folder, **more):
    return {"source_model": str(folder), **more}


def recipe_of(base, experts, mode="random", **more):
    return {"base_model": str(base), "gate_mode": mode, "experts": experts, **more}


@pytest.mark.parametrize(("kind", "architecture"), [("llama", "MixtralForCausalLM"), ("qwen3", "Qwen3MoeForCausalLM")])
def test_m1_four_copies_with_random_gates_are_the_dense_model(dense, tmp_path, kind, architecture):
    folder = dense(kind)
    out, made = build(tmp_path / "out", recipe_of(folder, [expert(folder)] * 4))
    model, report = load(out)
    assert report == {}
    assert type(model).__name__ == architecture
    expected, _ = load(folder)
    assert (logits(model) - logits(expected)).abs().max() <= 5e-6
    identity = check_identity(out, made)
    assert identity.holds
    assert identity.compared == (f"the mixture as it was written, with {folder} with the MLPs of {folder}",)


@pytest.fixture(scope="module")
def narrow(dense):
    """A base and experts in bfloat16."""
    return [dense("llama", seed, dtype=torch.bfloat16) for seed in range(3)]


def states(folder, prompts):
    """Input of every layer for a padded batch, as a program that knows nothing of mergekit gets it, and the mask."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.bos_token
    texts = [tokenizer.bos_token + prompt for prompt in prompts]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt", return_attention_mask=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        found = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states
    return torch.stack(found[:-1]), batch["attention_mask"]


def last(folder, prompts):
    hidden, _ = states(folder, prompts)
    return hidden[:, :, -1].sum(1) / len(prompts)


def unit(rows):
    return rows / rows.norm(p=2, dim=-1, keepdim=True).clamp(min=1e-8)


def gate_rows(out, layers=LAYERS):
    found = tensors(out)
    return torch.stack([found[GATE.format(layer)] for layer in range(layers)])


@pytest.mark.parametrize("mode", ["hidden", "hidden_last"])
def test_m2_hidden_rows_are_those_of_the_last_position_bit_by_bit(narrow, tmp_path, cache, mode):
    base, first, second = narrow
    given = [
        expert(first, positive_prompts=PROMPTS[0], negative_prompts=PROMPTS[1]),
        expert(second, positive_prompts=PROMPTS[2]),
    ]
    out, _ = build(tmp_path / "out", recipe_of(base, given, mode))
    rows = gate_rows(out)
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows[:, 0], unit(last(base, PROMPTS[0]) - last(base, PROMPTS[1])))
    assert torch.equal(rows[:, 1], unit(last(base, PROMPTS[2])))


def test_m2_hidden_avg_rows_average_the_tokens_and_no_padding(narrow, tmp_path, cache):
    base, first, second = narrow
    given = [expert(first, positive_prompts=PROMPTS[0]), expert(second, positive_prompts=PROMPTS[1])]
    out, _ = build(tmp_path / "out", recipe_of(base, given, "hidden_avg"))
    rows = gate_rows(out).float()
    for number, prompts in enumerate(PROMPTS[:2]):
        hidden, mask = states(base, prompts)
        alone = torch.stack([own[:, mask[place] > 0].float().mean(1) for place, own in enumerate(hidden.unbind(1))], 1)
        assert torch.allclose(rows[:, number], unit(alone.mean(1)), atol=4e-3)


def test_m2_cheap_embed_rows_are_equal_on_all_layers_and_subtract_before_normalising(dense, tmp_path):
    base, other = dense("llama"), dense("llama", 1)
    given = [
        expert(base, positive_prompts=PROMPTS[0], negative_prompts=PROMPTS[1]),
        expert(other, positive_prompts=PROMPTS[2]),
    ]
    out, _ = build(tmp_path / "out", recipe_of(base, given, "cheap_embed"))
    table = tensors(base)["model.embed_tokens.weight"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)

    def summed(prompts):
        ids = [number for text in prompts for number in tokenizer("<s>" + text, add_special_tokens=False)["input_ids"]]
        return unit(table[ids].sum(0))

    rows = gate_rows(out)
    assert torch.equal(rows[0], rows[1])
    assert torch.allclose(rows[0, 0], unit(summed(PROMPTS[0]) - summed(PROMPTS[1])), atol=1e-6)
    assert torch.allclose(rows[0, 1], summed(PROMPTS[2]), atol=1e-6)


def test_m2_random_rows_are_normal_or_even_within_their_bound(dense, tmp_path):
    given = [expert(dense("llama"))] * 64
    normal = gate_rows(build(tmp_path / "normal", recipe_of(dense("llama"), given))[0])
    even = gate_rows(build(tmp_path / "even", recipe_of(dense("llama"), given, "uniform_random"))[0])
    assert abs(normal.mean()) < 0.05
    assert normal.std() == pytest.approx(1, abs=0.03)
    bound = WIDTH**-0.5
    assert even.abs().max() <= bound
    assert even.abs().max() > 0.99 * bound
    assert even.std() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert len({row.tobytes() for row in normal.reshape(-1, WIDTH).numpy()}) == 64 * LAYERS


def test_m3_residual_scale_touches_the_down_projection_and_noise_all_three(dense, tmp_path):
    folder = dense("llama")
    given = [expert(folder), expert(folder, residual_scale=0.5), expert(folder, noise_scale=0.01, residual_scale=2.0)]
    recipe = recipe_of(folder, given)
    found = tensors(build(tmp_path / "out", recipe, seed=3)[0])
    own = tensors(folder)
    for layer in range(LAYERS):
        for matrix, name in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            stored = own[f"model.layers.{layer}.mlp.{name}_proj.weight"]
            factor = {"down": 0.5}.get(name, 1.0)
            assert torch.equal(found[EXPERT.format(layer, 0, matrix)], stored)
            assert torch.equal(found[EXPERT.format(layer, 1, matrix)], stored * factor)
            noise = found[EXPERT.format(layer, 2, matrix)] / ({"down": 2.0}.get(name, 1.0)) - stored
            assert noise.std() == pytest.approx(0.01, rel=0.1)
            assert abs(noise.mean()) < 0.002
    again = tensors(build(tmp_path / "again", recipe, seed=3, workers=1)[0])
    assert all(torch.equal(entries, again[name]) for name, entries in found.items())
    other = tensors(build(tmp_path / "other", recipe, seed=4)[0])
    changed = {name for name, entries in found.items() if not torch.equal(entries, other[name])}
    assert changed == {name for name in found if re.search(r"experts\.2\.|\.gate\.weight", name)}


def test_m4_qwen_from_llama_has_zero_biases_and_loads_without_a_missing_key(dense, tmp_path):
    base, other = dense("llama"), dense("llama", 1)
    recipe = recipe_of(base, [expert(base), expert(other)], architecture="qwen2", shared_experts=[expert(other)])
    out, made = build(tmp_path / "out", recipe)
    found = tensors(out)
    biases = {name: entries for name, entries in found.items() if name.endswith(".bias")}
    assert {name.rpartition("layers.0.")[2] for name in biases if ".0." in name} == {
        f"self_attn.{part}_proj.bias" for part in "qkv"
    }
    assert not any(entries.any() for entries in biases.values())
    assert [biases[f"model.layers.0.self_attn.{part}_proj.bias"].numel() for part in "qkv"] == [32, 16, 16]
    assert found["model.layers.1.mlp.shared_expert_gate.weight"].shape == (1, WIDTH)
    up = found["model.layers.1.mlp.shared_expert.up_proj.weight"]
    assert torch.equal(up, tensors(other)["model.layers.1.mlp.up_proj.weight"])
    model, report = load(out)
    assert (type(model).__name__, report) == ("Qwen2MoeForCausalLM", {})
    assert check_identity(out, made).holds


def test_m4_biases_are_as_long_as_heads_are_wide(dense, tmp_path):
    base = dense("llama", 7, head_dim=16)
    out, made = build(tmp_path / "out", recipe_of(base, [expert(base)] * 2, architecture="qwen2"))
    assert tensors(out)["model.layers.0.self_attn.q_proj.bias"].numel() == 64
    assert load(out)[1] == {}
    assert check_identity(out, made).holds


def test_m5_a_tied_base_stays_tied(dense, tmp_path):
    base, other = dense("llama_tied"), dense("llama_tied", 1)
    out, made = build(tmp_path / "out", recipe_of(base, [expert(base), expert(other)]))
    assert "lm_head.weight" not in tensors(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    assert load(out)[1] == {}
    assert check_identity(out, made).holds


def test_m5_unknown_keys_are_errors_with_lines_and_suggestions(dense, tmp_path):
    text = f"base_model: {dense('llama')}\ngate_modus: random\nexperts:\n- source_model: a\n  positive_prompt: [x]\n"
    with pytest.raises(RecipeError) as caught:
        build_moe(text, tmp_path / "out", file="moe.yml")
    told = str(caught.value)
    assert "unknown key `gate_modus`" in told
    assert "gate_modus (moe.yml:2)" in told
    assert "try `gate_mode`" in told
    assert "experts[0].positive_prompt (moe.yml:5)" in told
    assert "try `positive_prompts`" in told
    assert "a: there is no such folder" in told
    assert "experts[0].source_model (moe.yml:4)" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [{}, {"positive_prompts": ["one"]}])
def test_m5_one_expert_is_a_mixture_too(dense, tmp_path, cache, more):
    base, other = dense("llama"), dense("llama", 1)
    out, made = build(tmp_path / "out", recipe_of(base, [expert(other, **more)], "hidden"))
    model, report = load(out)
    assert report == {}
    assert (model.config.num_local_experts, model.config.num_experts_per_tok) == (1, 1)
    assert check_identity(out, made).holds


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "cheap_embed"])
def test_m5_one_expert_without_prompts_stands_beside_a_shared_one_that_has_some(dense, tmp_path, cache, mode):
    shared = [expert(dense("llama", 1), positive_prompts=["one"])]
    recipe = recipe_of(dense("llama"), [expert(dense("llama"))], mode, architecture="qwen2", shared_experts=shared)
    out, _ = build(tmp_path / "out", recipe)
    layer = load(out)[0].model.layers[0].mlp
    assert not layer.gate.weight.any()
    assert layer.shared_expert_gate.weight.any()


def test_m5_a_shared_expert_may_be_a_third_model_and_there_may_be_several(dense, tmp_path):
    base, other, third, fourth = (dense("llama", seed) for seed in range(4))
    shared = [expert(third, residual_scale=0.1), expert(fourth, residual_scale=0.2)]
    recipe = recipe_of(base, [expert(base), expert(other)], architecture="granite", shared_experts=shared)
    out, made = build(tmp_path / "out", recipe)
    model, report = load(out)
    assert (type(model).__name__, report) == ("GraniteMoeSharedForCausalLM", {})
    assert check_identity(out, made).holds
    layer, mlps = model.model.layers[0], [load(folder)[0].model.layers[0].mlp for folder in (third, fourth)]
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = 0.1 * mlps[0](x) + 0.2 * mlps[1](x)
        assert torch.allclose(layer.shared_mlp(x), expected, atol=1e-5)


def adapter(folder, base, seed=0):
    """A LoRA adapter of all MLPs."""
    import peft

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["gate_proj", "up_proj", "down_proj", "q_proj"])
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, entries in model.named_parameters():
            if "lora_B" in name:
                entries.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
def test_m5_an_adapter_is_an_expert_and_a_base(dense, tmp_path, cache):
    base = dense("llama")
    tuned = f"{base}+{adapter(tmp_path / 'adapter', base)}"
    given = [expert(base, positive_prompts=["abc"]), expert(tuned, positive_prompts=["xyz"])]
    out, made = build(tmp_path / "out", recipe_of(tuned, given, "hidden"))
    identity = check_identity(out, made)
    assert identity.holds
    assert len(identity.compared) == 2
    own = tensors(base)["model.layers.0.mlp.gate_proj.weight"]
    found = tensors(out)
    assert torch.equal(found[EXPERT.format(0, 0, "w1")], own)
    assert (found[EXPERT.format(0, 1, "w1")] - own).abs().max() > 0.01


CASES = [("llama", None), ("qwen3", None), ("granite", None), ("llama", "qwen2"), ("phi3", None)]


@pytest.mark.parametrize(("kind", "architecture"), CASES)
def test_m6_the_classic_layout_is_the_fused_one_tensor_by_tensor(dense, tmp_path, kind, architecture):
    folders = [dense(kind, seed) for seed in range(3)]
    given = [expert(folders[0], noise_scale=0.01), expert(folders[1]), expert(folders[2], residual_scale=0.5)]
    recipe = recipe_of(folders[0], given, **({"architecture": architecture} if architecture else {}))
    classic, _ = build(tmp_path / "classic", recipe)
    fused, _ = build(tmp_path / "fused", recipe, fused=True)
    one, report = load(classic)
    assert report == {}
    other, report = load(fused)
    assert report == {}
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(entries, other.state_dict()[name]) for name, entries in one.state_dict().items())
    stored = tensors(fused)
    joined = [name for name in stored if name.endswith(("gate_up_proj", "down_proj")) and "experts" in name]
    assert len(joined) == 2 * LAYERS
    assert all(torch.equal(stored[name], one.state_dict()[name]) for name in joined)


def test_gates_take_what_was_kept_and_nothing_else(narrow, tmp_path, cache):
    base, first, second = narrow
    given = [expert(first, positive_prompts=PROMPTS[0]), expert(second, positive_prompts=PROMPTS[1])]
    recipe = recipe_of(base, given, "hidden")
    fresh = gate_rows(build(tmp_path / "fresh", recipe)[0])
    kept = sorted(cache.iterdir())
    assert len(kept) == 2
    for file in kept:
        np.save(file, np.ones((LAYERS, WIDTH), np.float32))
    again = gate_rows(build(tmp_path / "again", recipe)[0])
    assert torch.equal(again, torch.full_like(again, WIDTH**-0.5))
    anew = build(tmp_path / "anew", recipe, gates=GateOptions(keep=False))[0]
    assert torch.equal(gate_rows(anew), fresh)
    given[0]["positive_prompts"] = [*PROMPTS[0], "another"]
    changed = gate_rows(build(tmp_path / "changed", recipe)[0])
    assert torch.equal(changed[:, 1], again[:, 1])
    assert not torch.equal(changed[:, 0], again[:, 0])
    assert len(sorted(cache.iterdir())) == 3


def test_four_bits_run_the_base_by_bitsandbytes(dense, tmp_path, cache):
    base, first, second = (
        dense("llama", 20 + seed, dtype=torch.bfloat16, hidden_size=64, intermediate_size=128) for seed in range(3)
    )
    given = [expert(first, positive_prompts=PROMPTS[0]), expert(second, positive_prompts=PROMPTS[1])]
    exact = gate_rows(build(tmp_path / "exact", recipe_of(base, given, "hidden"))[0]).float()
    rough = gate_rows(build(tmp_path / "rough", recipe_of(base, given, "hidden"), gates=GateOptions("cpu", 4))[0])
    cosine = torch.cosine_similarity(exact, rough.float(), dim=-1)
    assert cosine[0].min() > 0.999  # embeddings are not quantised
    assert 0.8 < cosine[1].min() < 0.99999


def test_a_tampered_mixture_is_found_out(dense, tmp_path):
    from safetensors.torch import save_file

    folder = dense("llama")
    out, made = build(tmp_path / "out", recipe_of(folder, [expert(folder)] * 2))
    found = tensors(out)
    found["model.layers.0.self_attn.q_proj.weight"][0, 0] += 1
    save_file(found, out / "model.safetensors", metadata={"format": "pt"})
    assert not check_identity(out, made).holds
