"""Adapters merged in their common core space, against dense deltas and against peft."""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_tuned import assert_restored, gpt2, llama, merged, peft, save

from mergekit.api.tensors import merge_tensors
from mergekit.errors import IncompatibleModelsError, NonFiniteError, OutputError, RecipeError
from mergekit.lora import Running, merge_adapters, plan_adapter_merge
from mergekit.lora.cores import LowRankProduct, core_space

REAL = Path(__file__).parents[2] / "examples" / "adapters"
PREFIX = "base_model.model."


def recipe(method, models, dtype=None, **parameters):
    entries = [
        {"model": str(one[0]), "parameters": one[1]} if isinstance(one, tuple) else {"model": str(one)}
        for one in models
    ]
    text = {"merge_method": method, "models": entries, "parameters": parameters}
    return yaml.safe_dump({**text, "dtype": dtype} if dtype else text, sort_keys=False)


def combine(text, out, **options):
    running = Running(overwrite=options.pop("overwrite", False))
    return merge_adapters(plan_adapter_merge(text, **options), out, running)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def deltas(folder, only=""):
    """What an adapter adds to each module with `only` in its name, in float64."""
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    found = {}
    for name, a in tensors.items():
        if ".lora_A." in name and only in name:
            module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            rank = config.get("rank_pattern", {}).get(module, config["r"])
            alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
            scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
            found[module] = scale * tensors[name.replace("lora_A", "lora_B")].double() @ a.double()
    return found


def trained(folder, base=None, seed=0, **config):
    """An adapter that peft made, with noise for factors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base or llama(), peft.LoraConfig(**config))
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
        model.save_pretrained(folder)
    return folder


# The core space


def product(draw, lines, columns, rank):
    b, a = draw.standard_normal((lines, rank)), draw.standard_normal((rank, columns))
    return LowRankProduct(b, a, float(draw.uniform(0.5, 2)))


def dense(one):
    return one.scale * one.b @ one.a


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_cores_stand_for_their_products(lines, columns, ranks, seed):
    draw = np.random.default_rng(seed)
    products = [product(draw, lines, columns, rank) for rank in ranks]
    space = core_space(products)
    assert max(space.cores[0].shape) <= min(sum(ranks), max(lines, columns))
    np.testing.assert_allclose(space.left.T @ space.left, np.eye(space.left.shape[1]), atol=1e-12)
    np.testing.assert_allclose(space.right @ space.right.T, np.eye(space.right.shape[0]), atol=1e-12)
    for one, core in zip(products, space.cores, strict=True):
        np.testing.assert_allclose(space.left @ core @ space.right, dense(one), atol=1e-5)
        b, a, kept = space.factored(core)
        np.testing.assert_allclose(b @ a, dense(one), atol=1e-5)
        assert kept == pytest.approx(1, abs=1e-6)


def test_cores_do_not_depend_on_the_order_nor_on_how_products_are_split():
    draw = np.random.default_rng(1)
    one, other = product(draw, 9, 7, 2), product(draw, 9, 7, 3)
    mixing = draw.standard_normal((3, 3))
    split = LowRankProduct(other.b @ mixing * 4, np.linalg.solve(mixing, other.a) / 4, other.scale)
    space, turned = core_space([one, other]), core_space([split, one])
    np.testing.assert_allclose(space.left, turned.left, atol=1e-8)
    np.testing.assert_allclose(space.cores[0], turned.cores[1], atol=1e-5)
    np.testing.assert_allclose(space.cores[1], turned.cores[0], atol=1e-5)


def test_a_product_that_is_not_there_is_zero():
    space = core_space([None, product(np.random.default_rng(1), 5, 6, 2)])
    assert not space.cores[0].any()
    assert space.cores[0].shape == space.cores[1].shape == (2, 2)


# Real adapters


def test_three_adapters_give_the_dense_merge(tmp_path):
    weights = {"de": 0.5, "es": 0.3, "it": 0.7}
    report = combine(
        recipe("task_arithmetic", [(REAL / n, {"weight": w}) for n, w in weights.items()]), tmp_path / "out"
    )
    parts = {name: deltas(REAL / name, ".7.") for name in weights}
    found = deltas(tmp_path / "out", ".7.")
    assert len(found) == 7
    assert report["totals"]["modules"] == 210
    assert report["exact"]
    assert report["totals"]["rank"] == [24, 24]
    for module, delta in found.items():
        wanted = sum(weight * parts[name][module] for name, weight in weights.items())
        assert float((delta - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


EXACT = {
    "task_arithmetic": {"weight": 0.4, "lambda": 1.5},
    "linear": {"weight": 1.0},
    "model_stock": {},
    "multislerp": {"weight": 1.0},
}
CORES = {
    "ties": {"weight": 1.0, "density": 0.5},
    "dare_linear": {"weight": 1.0, "density": 0.5},
    "dare_ties": {"weight": 1.0, "density": 0.5},
    "breadcrumbs": {"weight": 1.0, "density": 0.8},
    "breadcrumbs_ties": {"weight": 1.0, "density": 0.8},
    "della": {"weight": 1.0, "density": 0.5},
    "della_linear": {"weight": 1.0, "density": 0.5},
    "sce": {},
    "ram": {},
    "ramplus_tl": {},
}


@pytest.fixture
def three(tmp_path):
    targets = ["q_proj", "down_proj"]
    ranks = enumerate((2, 3, 4))
    return [
        trained(tmp_path / f"a{seed}", seed=seed, r=rank, lora_alpha=5, target_modules=targets) for seed, rank in ranks
    ]


@pytest.mark.parametrize("method", EXACT)
def test_exact_methods_are_those_of_dense_deltas(method, three, tmp_path):
    report = combine(recipe(method, three, **EXACT[method]), tmp_path / "out")
    assert report["exact"]
    assert not report["notices"]
    parts, found = [deltas(folder) for folder in three], deltas(tmp_path / "out")
    for module, delta in found.items():
        tensors = [part[module].float().numpy() for part in parts]
        wanted = merge_tensors(method, tensors, base=np.zeros_like(tensors[0]), parameters=EXACT[method])
        np.testing.assert_allclose(delta.numpy(), wanted, atol=1e-6)


def test_the_arc_between_two_deltas_is_exact_if_flat(three, tmp_path):
    combine(recipe("nuslerp", three[:2], weight=1.0), tmp_path / "flat")
    parts, found = [deltas(folder) for folder in three[:2]], deltas(tmp_path / "flat")
    for module, delta in found.items():
        tensors = [part[module].float().numpy() for part in parts]
        wanted = merge_tensors("nuslerp", tensors, base=np.zeros_like(tensors[0]), parameters={"weight": 1.0})
        np.testing.assert_allclose(delta.numpy(), wanted, atol=1e-6)
    plan = plan_adapter_merge(recipe("nuslerp", three[:2], weight=1.0, nuslerp_flatten=False))
    assert not plan.exact


@pytest.mark.parametrize("method", CORES)
def test_other_methods_are_theirs_of_the_cores(method, three, tmp_path):
    report = combine(recipe(method, three, **CORES[method]), tmp_path / "out", seed=7)
    assert not report["exact"]
    assert any("core space" in notice for notice in report["notices"])
    parts, found = [deltas(folder) for folder in three], deltas(tmp_path / "out")
    for module, delta in found.items():
        space = core_space([_split(part[module].numpy()) for part in parts])
        wanted = merge_tensors(
            method,
            list(space.cores),
            base=np.zeros_like(space.cores[0]),
            parameters=CORES[method],
            name=f"{module}.weight",
            seed=7,
        )
        np.testing.assert_allclose(delta.numpy(), space.left @ wanted @ space.right, atol=1e-5)
        assert np.abs(delta.numpy()).max() > 1e-3


def _split(matrix):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = int((values > 1e-6 * values[0]).sum())
    return LowRankProduct(left[:, :rank] * values[:rank], right[:rank])


# What adapters may be


def test_ranks_targets_and_scales_of_their_own(tmp_path):
    members = [
        trained(tmp_path / "a", seed=1, r=2, lora_alpha=7, target_modules=["q_proj", "up_proj"], use_rslora=True),
        trained(
            tmp_path / "b", seed=2, r=5, lora_alpha=2, target_modules=["q_proj"], rank_pattern={"0.self_attn.q_proj": 3}
        ),
    ]
    report = combine(
        recipe("task_arithmetic", [(members[0], {"weight": 0.5}), (members[1], {"weight": 2})]), tmp_path / "out"
    )
    assert any("changes nothing about 2 modules" in notice for notice in report["notices"])
    one = deltas(members[0])
    other = {
        module: delta * (2 / 3 if "layers.0" in module else 2 / 5) for module, delta in _unscaled(members[1]).items()
    }
    for module, delta in deltas(tmp_path / "out").items():
        wanted = 0.5 * one[module] + 2 * other.get(module, 0 * one[module])
        torch.testing.assert_close(delta, wanted, rtol=0, atol=1e-6)
    ranks = {entry["module"]: entry["rank"] for entry in report["modules"]}
    assert ranks["model.layers.0.self_attn.q_proj"] == 5
    assert ranks["model.layers.1.self_attn.q_proj"] == 7
    assert ranks["model.layers.1.mlp.up_proj"] == 2


def _unscaled(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        name.removeprefix(PREFIX).removesuffix(".lora_A.weight"): tensors[name.replace("lora_A", "lora_B")].double()
        @ a.double()
        for name, a in tensors.items()
        if ".lora_A." in name
    }


@pytest.mark.parametrize("case", ["llama", "biases", "gpt2", "embedding and head"])
def test_peft_loads_the_result_and_merges_to_the_same(case, tmp_path):
    base, config = {
        "llama": (llama(), {"target_modules": ["q_proj", "k_proj"]}),
        "biases": (llama(attention_bias=True), {"target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
        "gpt2": (gpt2(), {"target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True}),
        "embedding and head": (llama(), {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    }[case]
    save(base, tmp_path / "base")
    folders = [trained(tmp_path / name, copy.deepcopy(base), seed, r=3, **config) for seed, name in enumerate("ab")]
    combine(recipe("task_arithmetic", folders, weight=0.5), tmp_path / "out")
    own = [merged(tmp_path, adapter=folder.name) for folder in folders]
    with torch.no_grad():
        for first, second, start in zip(own[0].parameters(), own[1].parameters(), base.parameters(), strict=True):
            first.copy_(start + 0.5 * (first - start) + 0.5 * (second - start))
    assert_restored(merged(tmp_path, adapter="out"), own[0], 1e-6)


REFUSED = {
    "norms of outputs": ({"use_dora": True}, "norms of their own (DoRA)"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "1 tensors are held whole"),
    "rows of tokens": ({"trainable_token_indices": [1, 2]}, "rows of the vocabulary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_the_base_is_refused(case, tmp_path):
    config, reason = REFUSED[case]
    plain = trained(tmp_path / "a", r=2, target_modules=["q_proj"])
    other = trained(tmp_path / "b", r=2, target_modules=["q_proj"], **config)
    with pytest.raises(RecipeError) as caught:
        plan_adapter_merge(recipe("task_arithmetic", [plain, other], weight=1))
    assert reason in str(caught.value)
    assert "at models[1].model" in str(caught.value)
    assert "BASE+ADAPTER" in str(caught.value)


@pytest.mark.parametrize("method", ["slerp", "karcher", "nearswap", "arcee_fusion", "passthrough"])
def test_methods_on_whole_weights_are_refused(method, three):
    with pytest.raises(RecipeError, match=method) as caught:
        plan_adapter_merge(recipe(method, three[:2]))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].hint


def test_mistakes_in_the_recipe_are_found_at_once(three, tmp_path):
    text = recipe("ties", [three[0], tmp_path / "nowhere", (three[1], {"wieght": 1})], density=3)
    with pytest.raises(RecipeError) as caught:
        plan_adapter_merge(text + "merge_mehtod: ties\n")
    said = str(caught.value)
    for part in ("`merge_mehtod`", "nowhere", "`wieght`", "`density` is 3"):
        assert part in said


def test_too_few_adapters(three):
    with pytest.raises(RecipeError, match="model_stock does not merge 1 adapters"):
        plan_adapter_merge(recipe("model_stock", three[:1]))


def test_filters_and_gradients(three, tmp_path):
    weight = [{"filter": "down_proj", "value": 0}, {"value": [1, 3]}]
    combine(recipe("task_arithmetic", three[:1], weight=weight), tmp_path / "out")
    start, found = deltas(three[0]), deltas(tmp_path / "out")
    assert found.keys() == {f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)}
    for layer, factor in ((0, 1), (1, 3)):
        name = f"model.layers.{layer}.self_attn.q_proj"
        torch.testing.assert_close(found[name], factor * start[name], rtol=0, atol=1e-6)
    with pytest.raises(RecipeError, match="filter `up_proj` matches no tensor"):
        plan_adapter_merge(
            recipe("task_arithmetic", three[:1], weight=[{"filter": "up_proj", "value": 0}, {"value": 1}])
        )


def test_nothing_is_left(three, tmp_path):
    with pytest.raises(RecipeError, match="nothing is left of the adapters"):
        combine(recipe("task_arithmetic", three, weight=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lower_rank_keeps_the_largest_singular_values(three, tmp_path):
    report = combine(recipe("task_arithmetic", three, weight=1), tmp_path / "out", rank=2)
    parts = [deltas(folder) for folder in three]
    for module, delta in deltas(tmp_path / "out").items():
        whole = sum(part[module] for part in parts)
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
        torch.testing.assert_close(delta, (left[:, :2] * values[:2]) @ right[:2], rtol=0, atol=1e-5)
        [energy] = [entry["energy"] for entry in report["modules"] if entry["module"] == module]
        assert energy == pytest.approx(float((values[:2] ** 2).sum() / (values**2).sum()), abs=1e-5)


def test_random_methods_follow_the_seed(three, tmp_path):
    text = recipe("dare_linear", three, weight=1, density=0.5)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        combine(text, tmp_path / name, seed=seed)
    one, again, other = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("one", "again", "other"))
    assert one == again != other


def test_adapters_of_other_shapes(three, tmp_path):
    wide = llama(head_dim=16)
    other = trained(tmp_path / "wide", wide, r=2, target_modules=["q_proj"])
    with pytest.raises(IncompatibleModelsError, match=r"`model\.layers\.0\.self_attn\.q_proj` is \[64, 32\]"):
        plan_adapter_merge(recipe("task_arithmetic", [three[0], other], weight=1))


def test_adapters_for_different_bases_are_told(three):
    for number, folder in enumerate(three[:2]):
        file = folder / "adapter_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps({**settings, "base_model_name_or_path": f"org/base-{number}"}))
    plan = plan_adapter_merge(recipe("task_arithmetic", three[:2], weight=1))
    assert any("different models" in problem.what for problem in plan.findings.warnings)


def test_names_meet_without_the_prefix_of_the_larger_model(tmp_path):
    first = trained(tmp_path / "a", gpt2(), r=2, target_modules=["c_attn"])
    file = trained(tmp_path / "b", gpt2(), seed=1, r=2, target_modules=["c_attn"]) / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("transformer.", ""): tensor for name, tensor in tensors.items()}, file, {"format": "pt"})
    report = combine(recipe("task_arithmetic", [first, tmp_path / "b"], weight=1), tmp_path / "out")
    assert {entry["rank"] for entry in report["modules"]} == {4}


def test_the_output_never_replaces_an_adapter(three, tmp_path):
    text = recipe("task_arithmetic", three, weight=1)
    combine(text, tmp_path / "out")
    with pytest.raises(OutputError, match="replace one of the adapters"):
        merge_adapters(
            plan_adapter_merge(recipe("task_arithmetic", [tmp_path / "out"], weight=1)),
            tmp_path / "out",
            Running(overwrite=True),
        )
    combine(text, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == text
    assert "Task Arithmetic" in (tmp_path / "out" / "README.md").read_text()


def test_weights_of_the_base_that_come_along_must_be_the_same(tmp_path):
    folders = [
        trained(tmp_path / name, seed=seed, r=2, target_modules=["embed_tokens"]) for seed, name in enumerate("ab")
    ]
    plan = plan_adapter_merge(recipe("task_arithmetic", folders, weight=1))
    assert any("weights of the base" in notice for notice in plan.findings.notices)
    merge_adapters(plan, tmp_path / "out")
    file = folders[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.embed_tokens.base_layer.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(IncompatibleModelsError, match="a weight of the base, is not the same"):
        merge_adapters(plan_adapter_merge(recipe("task_arithmetic", folders, weight=1)), tmp_path / "other")


def test_dtype_of_the_output(three, tmp_path):
    combine(recipe("task_arithmetic", three, "bfloat16", weight=1), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_broken_numbers_are_found(three, tmp_path):
    file = three[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"`base_model\.model\.model\.layers\.1\.mlp\.down_proj\.lora_A\.weight`"):
        combine(recipe("task_arithmetic", three, weight=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_threads_do_not_matter(three, tmp_path):
    plan = plan_adapter_merge(recipe("ties", three, weight=1, density=0.5))
    for workers in (1, 3):
        merge_adapters(plan, tmp_path / f"out-{workers}", Running(workers=workers))
    one, other = ((tmp_path / f"out-{n}" / "adapter_model.safetensors").read_bytes() for n in (1, 3))
    assert one == other


@pytest.mark.parametrize("dtype", ["float64", "int8"])
def test_dtypes_that_adapters_do_not_have(dtype, three):
    with pytest.raises(RecipeError, match=dtype):
        plan_adapter_merge(recipe("task_arithmetic", three, dtype, weight=1))
