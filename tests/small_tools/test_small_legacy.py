"""Recipes from flags."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_models import call, llama_tensors, write_llama

from mergekit.errors import MergekitError
from mergekit.fronts import legacy_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(["base", "a", "b"]):
        write_llama(folder / name, seed)
    return folder


def recipe(*models, **flags):
    return yaml.safe_load(legacy_recipe(models, **flags))


def test_o4_ties_with_density_weight_and_int8_mask():
    found = recipe("a", "b", base_model="o", density=[0.5], weight=[0.3, 0.7], int8_mask=True, dtype="bfloat16")
    assert found == {
        "merge_method": "ties",
        "base_model": "o",
        "models": [
            {"model": "a", "parameters": {"density": 0.5, "weight": 0.3}},
            {"model": "b", "parameters": {"density": 0.5, "weight": 0.7}},
            {"model": "o"},
        ],
        "parameters": {"normalize": True, "int8_mask": True},
        "dtype": "bfloat16",
    }


def test_o4_the_weight_of_slerp_is_t():
    found = recipe("a", "b", method="slerp", base_model="a", weight=[0.25])
    assert found == {
        "merge_method": "slerp",
        "base_model": "a",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": 0.25},
    }
    for wrong in ([], [0.1, 0.2]):
        with pytest.raises(MergekitError, match="SLERP takes one weight"):
            recipe("a", "b", method="slerp", base_model="a", weight=wrong)


def test_o4_defaults():
    assert recipe("a", "b", base_model="o") == {
        "merge_method": "ties",
        "base_model": "o",
        "models": [{"model": "a"}, {"model": "b"}, {"model": "o"}],
        "parameters": {"normalize": True},
    }
    assert recipe("a", method="linear", normalize=False)["parameters"] == {"normalize": False}


def test_a_base_is_averaged_by_methods_without_one():
    found = recipe("a", method="linear", base_model="o", weight=[1])
    assert found["models"] == [{"model": name, "parameters": {"weight": 1}} for name in ("a", "o")]


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(MergekitError, match="3 values of `density`"):
        recipe("a", "b", density=[0.1, 0.2, 0.3])
    with pytest.raises(MergekitError, match="no merge method `tise`"):
        recipe("a", method="tise")


def test_the_command_merges_and_shows_its_recipe(models, tmp_path):
    flags = ["--merge", models / "a", "--merge", models / "b", "--base-model", models / "base"]
    done = call(
        "legacy", tmp_path / "out", *flags, "--method", "task_arithmetic", "--weight", 0.5, "--print-yaml", "--strict"
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("merge_method: task_arithmetic\n")
    base, a, b = (llama_tensors(seed) for seed in range(3))
    written = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.2.mlp.gate_proj.weight"
    expected = base[name] + 0.5 * (a[name] - base[name]) + 0.5 * (b[name] - base[name])
    assert (written[name] - expected).abs().max() < 1e-5
    kept = (tmp_path / "out" / "mergekit_config.yml").read_text()
    assert done.stdout.startswith(kept)


def test_the_default_method_needs_no_weights(models, tmp_path):
    done = call(
        "legacy", tmp_path / "out", "--merge", models / "a", "--base-model", models / "base", "--bf16", "--strict"
    )
    assert done.exit_code == 0, done.output
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in written.values()} == {"torch.bfloat16"}


def test_paths_are_meant_literally(tmp_path):
    names = write_llama(tmp_path / "a+b@c", 0), write_llama(tmp_path / "d@e@f", 1)
    done = call("legacy", tmp_path / "out", "--merge", names[0], "--base-model", names[1])
    assert done.exit_code == 0, done.stderr
    assert call("verify", tmp_path / "out").exit_code == 0


def test_a_plan_writes_nothing(models, tmp_path):
    done = call("legacy", tmp_path / "out", "--merge", models / "a", "--method", "linear", "--plan")
    assert done.exit_code == 0, done.output
    assert "(not written)" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_naive_count_elects_signs_by_counting_models(models, tmp_path):
    write_llama(models / "c", 3)
    flags = ["--base-model", models / "base", "--naive-count", "--strict"]
    for name, weight in (("a", 5), ("b", 1), ("c", 1)):
        flags += ["--merge", models / name, "--weight", weight]
    done = call("legacy", tmp_path / "out", *flags)
    assert done.exit_code == 0, done.output
    base, *others = (llama_tensors(seed) for seed in range(4))
    name = "model.layers.1.mlp.up_proj.weight"
    votes = torch.stack([weight * (one[name] - base[name]) for one, weight in zip(others, (5, 1, 1), strict=True)])
    sign = votes.sign().sum(0).sign()
    agree = votes.sign() == sign
    weights = torch.tensor([5.0, 1.0, 1.0])[:, None, None]
    expected = base[name] + (votes * agree).sum(0) / (weights * agree).sum(0)
    written = load_file(tmp_path / "out" / "model.safetensors")[name]
    assert (written - expected).abs().max() < 1e-5
    by_sum = votes.sum(0).sign()
    assert (by_sum != sign).any()
