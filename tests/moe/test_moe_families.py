"""Which dense models become which mixtures, and why others do not."""

import json
import shutil

import pytest
import torch
import yaml
from moe_models import INNER, LAYERS, load, logits, tensors
from safetensors.torch import save_file

from mergekit.errors import RecipeError
from mergekit.moe import FAMILIES, MoeOptions, build_moe, check_identity, plan_moe


def text_of(base, experts, shared=(), **more):
    recipe = {"base_model": str(base), "gate_mode": "random", **more}
    recipe["experts"] = [{"source_model": str(folder)} for folder in experts]
    if shared:
        recipe["shared_experts"] = [{"source_model": str(folder), "residual_scale": 0.1} for folder in shared]
    return yaml.safe_dump(recipe, sort_keys=False)


def planned(text, **more):
    return plan_moe(text, file="moe.yml", moe=MoeOptions(**more))


def refusal(text, **more):
    with pytest.raises(RecipeError) as caught:
        planned(text, **more)
    return str(caught.value)


NEAREST = [
    ("llama", "mixtral"),
    ("llama_tied", "mixtral"),
    ("llama_bias", "granitemoe"),
    ("mistral", "mixtral"),
    ("phi3", "mixtral"),
    ("qwen2", "qwen2_moe"),
    ("qwen3", "qwen3_moe"),
    ("granite", "granitemoe"),
]


@pytest.mark.parametrize(("kind", "model_type"), NEAREST)
def test_the_nearest_family_computes_as_the_dense_models_do(dense, tmp_path, kind, model_type):
    folders = [dense(kind, seed) for seed in range(2)]
    report, made = build_moe(text_of(folders[0], folders), tmp_path / "out")
    assert made.family.model_type == model_type
    assert report["options"]["architecture"] == model_type
    identity = check_identity(tmp_path / "out", made)
    assert identity.difference < 2e-6
    assert len(identity.compared) == 2
    model, found = load(tmp_path / "out")
    assert found == {}
    assert model.config.num_experts_per_tok == 2


EXACT = [
    ("llama", "qwen2", "Qwen2MoeForCausalLM"),
    ("llama", "granite", "GraniteMoeForCausalLM"),
    ("mistral", "qwenmoe", "Qwen2MoeForCausalLM"),
    ("phi3", "GraniteMoe", "GraniteMoeForCausalLM"),
    ("llama_tied", "Qwen MoE", "Qwen2MoeForCausalLM"),
    ("qwen3", "qwen", "Qwen3MoeForCausalLM"),
    ("qwen2", "qwen", "Qwen2MoeForCausalLM"),
    ("qwen3", "Qwen3MoeForCausalLM", "Qwen3MoeForCausalLM"),
]


@pytest.mark.parametrize(("kind", "name", "architecture"), EXACT)
def test_a_recipe_may_name_any_family_that_fits(dense, tmp_path, kind, name, architecture):
    folders = [dense(kind, seed) for seed in range(2)]
    _, made = build_moe(text_of(folders[0], folders, architecture=name), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [architecture]
    assert check_identity(tmp_path / "out", made).difference < 2e-6


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_family_is_found_by_all_its_names(family):
    names = (family.title, family.model_type, family.architecture, *family.spellings)
    assert all(family.is_called(name) for name in names)
    assert not family.is_called("gpt")


UNFIT = [
    ("gemma", None, ["every family: the base's embeddings are multiplied by the root of their width", "1 is added"]),
    ("olmo2", None, ["the base's norms stand behind attention and MLP", "`post_feedforward_layernorm.weight`"]),
    ("llama_bias", "mixtral", ["Mixtral: the base's queries, keys and values have biases; the output of the base's"]),
    ("llama_bias", "qwen2", ["Qwen2 MoE: the output of the base's attention has a bias"]),
    ("qwen3", "mixtral", ["Mixtral: the base's queries and keys are normalised, each head"]),
    ("granite", "mixtral", ["the base multiplies what it computes (`embedding_multiplier`"]),
    ("mistral", "deepseek", ["the base's attention sees 8 tokens (`sliding_window`)"]),
    ("qwen2", "qwen3", ["some of the base's layers see 8 tokens", "normalises queries and keys head by head"]),
    ("llama", "olmoe", ["OLMoE: it normalises queries and keys over all heads, and the base does not"]),
    ("llama_mlp_bias", None, ["cannot be an expert: its MLPs have biases", "experts[0].source_model (moe.yml:"]),
    ("gpt_neox", None, ["cannot be an expert: its layers have no MLP with gate, up, down matrices"]),
    ("llama", "gpt", ["`gpt` is not the name of a family of mixtures", "architecture (moe.yml:", "`mixtral`"]),
]


@pytest.mark.parametrize(("kind", "name", "said"), UNFIT)
def test_it_is_said_why_a_model_does_not_fit(dense, kind, name, said):
    more = {"architecture": name} if name else {}
    told = refusal(text_of(dense(kind), [dense(kind)] * 2, **more))
    assert all(each in told for each in said), told


def test_with_v_every_family_says_why_it_does_not_fit(dense):
    notices = planned(text_of(dense("qwen3"), [dense("qwen3")] * 2), explain=True).plan.findings.notices
    told = dict(text.split(": ", 1) for text in notices if ": " in text)
    assert told["Qwen3 MoE"] == "fits"
    assert told["Mixtral"] == "the base's queries and keys are normalised, each head"
    assert told.keys() >= {family.title for family in FAMILIES}


@pytest.mark.parametrize("name", ["olmoe", "qwen3"])
def test_a_family_that_computes_otherwise_is_written_if_that_is_asked_for(dense, tmp_path, name):
    text = text_of(dense("llama"), [dense("llama"), dense("llama", 1)], architecture=name)
    assert "--allow-inexact" in refusal(text)
    _, made = build_moe(text, tmp_path / "out", moe=MoeOptions(inexact=True))
    assert made.plan.findings.warnings[0].what.startswith(
        f"{made.family.title} computes otherwise than the base: it normalises"
    )
    assert load(tmp_path / "out")[1] == {}
    norms = {name: entries for name, entries in tensors(tmp_path / "out").items() if "q_norm" in name}
    assert len(norms) == LAYERS
    assert all((entries == 1).all() for entries in norms.values())
    assert not check_identity(tmp_path / "out", made).holds


def test_what_would_lose_tensors_is_refused_all_the_same(dense):
    text = text_of(dense("qwen3"), [dense("qwen3")] * 2, architecture="mixtral")
    assert "the base's queries and keys are normalised" in refusal(text, inexact=True)


def test_shared_experts_need_a_family_that_has_them(dense):
    folders = [dense("llama", seed) for seed in range(3)]
    assert planned(text_of(folders[0], folders[:2], folders[2:])).family.title == "DeepSeek MoE"
    told = refusal(text_of(folders[0], folders[:2], folders[2:], architecture="mixtral"))
    assert "Mixtral: it has no shared experts" in told
    told = refusal(text_of(folders[0], folders[:2], folders[1:], architecture="qwen2"))
    assert "Qwen2 MoE: it has one shared expert, not 2" in told
    text = text_of(folders[0], folders[:2], folders[2:], architecture="qwen2").replace("random", "cheap_embed")
    recipe = yaml.safe_load(text)
    for number, expert in enumerate(recipe["experts"]):
        expert["positive_prompts"] = [str(number)]
    assert "its shared expert has a gate, which needs `positive_prompts`" in refusal(yaml.safe_dump(recipe))
    recipe["shared_experts"][0]["positive_prompts"] = ["all"]
    assert planned(yaml.safe_dump(recipe)).family.title == "Qwen2 MoE"
    del recipe["architecture"]
    assert planned(yaml.safe_dump(recipe)).family.title == "Qwen2 MoE"


def as_mixtral(folder, out):
    """A DeepSeek mixture without shared experts under Mixtral's names."""
    matrices = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    renamed = {}
    for name, entries in tensors(folder).items():
        new = name.replace(".mlp.", ".block_sparse_moe.")
        for own, other in matrices.items():
            new = new.replace(f".{own}.weight", f".{other}.weight") if ".experts." in new else new
        renamed[new] = entries
    out.mkdir()
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    config |= {"num_local_experts": config["n_routed_experts"]}
    (out / "config.json").write_text(json.dumps(config))
    save_file(renamed, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_deepseek_has_routed_experts_as_mixtral_has_and_shared_ones_side_by_side(dense, tmp_path):
    folders = [dense("llama", seed) for seed in range(4)]
    plain = text_of(folders[0], folders[:2], architecture="deepseek")
    _, made = build_moe(plain, tmp_path / "plain")
    told = [problem.what for problem in made.plan.findings.warnings]
    assert "DeepSeek MoE is loaded by code from the hub, which loaders run only if they are told to" in told
    identity = check_identity(tmp_path / "plain", made)
    assert (identity.difference, identity.compared) == (None, ())
    assert "loaded by code from the hub, which is not run here" in identity.left_out[0]
    build_moe(text_of(folders[0], folders[:2]), tmp_path / "mixtral")
    expected, _ = load(tmp_path / "mixtral")
    found, missed = load(as_mixtral(tmp_path / "plain", tmp_path / "renamed"))
    assert missed == {}
    assert torch.equal(logits(found), logits(expected))

    build_moe(text_of(folders[0], folders[:2], folders[2:], architecture="deepseek"), tmp_path / "shared")
    config = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert (config["n_shared_experts"], config["moe_intermediate_size"]) == (2, INNER)
    written = tensors(tmp_path / "shared")
    own = [tensors(folder) for folder in folders[2:]]
    stem = "model.layers.1.mlp.{}_proj.weight"
    for matrix, axis, factor in (("gate", 0, 1), ("up", 0, 1), ("down", 1, torch.tensor(0.1))):
        joined = torch.cat([each[stem.format(matrix)] for each in own], axis) * factor
        assert torch.equal(written[f"model.layers.1.mlp.shared_experts.{matrix}_proj.weight"], joined)


def test_experts_of_other_types_and_widths(dense):
    llama, mistral, qwen = dense("llama"), dense("mistral"), dense("qwen3")
    assert planned(text_of(llama, [mistral, qwen])).family.title == "Mixtral"
    wide = dense("llama", 30, intermediate_size=64)
    assert planned(text_of(llama, [wide, wide])).family.title == "Mixtral"
    told = refusal(text_of(llama, [llama, wide]))
    assert f"the MLPs of the experts are of unequal width: {INNER} in {llama} and 64 in {wide}" in told
    deep, broad = dense("llama", 31, num_hidden_layers=3), dense("llama", 32, hidden_size=64)
    told = refusal(text_of(llama, [llama, deep]))
    assert f"{deep} has 3 layers, and {llama} has 2" in told
    assert "experts[1].source_model (moe.yml:5)" in told
    assert f"{broad} is 64 wide, and {llama} 32" in refusal(text_of(llama, [llama, broad]))
    gelu = dense("llama", 33, hidden_act="gelu")
    assert f"the MLPs of {gelu} use `gelu`, and those of {llama} `silu`" in refusal(text_of(llama, [llama, gelu]))
    more = dense("llama", 34, vocab_size=160)
    warnings = planned(text_of(llama, [llama, more])).plan.findings.warnings
    assert f"{more} has a vocabulary of 160 tokens, and {llama} of 150" in warnings[0].what


def test_a_mixture_is_neither_base_nor_expert(dense, tmp_path):
    llama = dense("llama")
    build_moe(text_of(llama, [llama] * 2), tmp_path / "mixture")
    told = refusal(text_of(tmp_path / "mixture", [llama, tmp_path / "mixture"]))
    assert f"{tmp_path / 'mixture'} is a mixture of experts already" in told
    assert f"{tmp_path / 'mixture'} cannot be an expert: it is a mixture of experts already" in told


def test_a_type_that_is_not_known_is_refused_unless_that_is_asked_for(dense, tmp_path):
    llama = dense("llama")
    strange = tmp_path / "strange"
    strange.mkdir()
    config = json.loads((llama / "config.json").read_text()) | {"model_type": "strange"}
    (strange / "config.json").write_text(json.dumps(config))
    shutil.copy(llama / "model.safetensors", strange)
    assert "what a model of type `strange` computes is not known here" in refusal(text_of(strange, [strange] * 2))
    made = planned(text_of(strange, [strange] * 2, architecture="mixtral"), inexact=True)
    assert made.family.title == "Mixtral"


def test_what_the_config_leaves_to_loaders_is_written(dense, tmp_path):
    """Mixtral has other defaults than Llama: of rotation, of norms, of heads."""
    llama, short = dense("llama"), tmp_path / "short"
    short.mkdir()
    config = json.loads((llama / "config.json").read_text())
    for key in ("rope_parameters", "rms_norm_eps", "hidden_act", "max_position_embeddings", "tie_word_embeddings"):
        config.pop(key)
    config["head_dim"] = None
    (short / "config.json").write_text(json.dumps(config))
    shutil.copy(llama / "model.safetensors", short)
    for name in ("mixtral", "qwen2", "granite"):
        _, made = build_moe(text_of(short, [short] * 2, architecture=name), tmp_path / name)
        assert check_identity(tmp_path / name, made).difference < 2e-6


def test_config_stays_the_bases_but_for_what_makes_it_a_mixture(dense, tmp_path):
    llama = dense("llama")
    build_moe(text_of(llama, [llama] * 3), tmp_path / "out")
    before = (llama / "config.json").read_text().splitlines()
    after = (tmp_path / "out" / "config.json").read_text().splitlines()
    assert [line.rstrip(",") for line in before if line not in after and f"{line}," not in after] == [
        '    "LlamaForCausalLM"',
        '  "model_type": "llama"',
    ]
    assert [line.strip().rstrip(",") for line in after if line not in before and line.rstrip(",") not in before] == [
        '"MixtralForCausalLM"',
        '"model_type": "mixtral"',
        '"num_local_experts": 3',
        '"num_experts_per_tok": 2',
        '"sliding_window": null',
    ]
