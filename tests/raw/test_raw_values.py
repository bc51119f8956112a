"""Merged values: formulas in float64, torch's own arithmetic, and merges of the same tensors in memory."""

import numpy as np
import pytest
import torch
from raw_samples import merge, network, numbers, recipe, result, write

from mergekit.api.tensors import merge_state_dicts
from mergekit.merging import JobOptions
from mergekit.methods import METHODS
from mergekit.plan import PlanOptions

DTYPES = {"float32": (torch.float32, 2e-6), "bfloat16": (torch.bfloat16, 2**-8), "float64": (torch.float64, 2e-6)}


@pytest.fixture(params=DTYPES)
def three(request, tmp_path):
    """A base and two others: tensors, files, and how far a rounded result may be off, as a share of it."""
    dtype, share = DTYPES[request.param]
    tensors = {name: network(seed, dtype) for seed, name in ((10, "base"), (20, "a"), (30, "b"))}
    names = {"base": "base.pt", "a": "a.safetensors", "b": "b.ckpt"}
    return tensors, {name: write(tmp_path / file, tensors[name]) for name, file in names.items()}, share


def agree(merged, wanted, share):
    assert merged.keys() == wanted.keys()
    for name, tensor in merged.items():
        assert tensor.shape == wanted[name].shape
        assert torch.allclose(tensor.double(), wanted[name], rtol=share, atol=share / 8), name


def test_linear(three, tmp_path):
    tensors, files, share = three
    text = recipe("linear", [files["a"], files["b"]], each=[{"weight": 0.25}, {"weight": 0.75}])
    merge(text, tmp_path / "out")
    wanted = {name: 0.25 * tensors["a"][name].double() + 0.75 * tensors["b"][name].double() for name in tensors["a"]}
    agree(result(tmp_path / "out"), wanted, share)


def slerp(a, b, t):
    cosine = (a.flatten() @ b.flatten() / (a.norm() * b.norm())).clamp(-1, 1)
    if cosine.abs() > 0.9995:
        return (1 - t) * a + t * b
    angle = cosine.acos()
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def test_slerp(three, tmp_path):
    tensors, files, share = three
    merge(recipe("slerp", [files["a"], files["b"]], parameters={"t": 0.3}), tmp_path / "out")
    a, b = tensors["a"], tensors["b"]
    agree(result(tmp_path / "out"), {name: slerp(a[name].double(), b[name].double(), 0.3) for name in a}, share)


def ties(base, models, density):
    """Trim by magnitude, elect a sign per entry, average those that agree."""
    votes = []
    for model in models:
        delta = (model - base).flatten()
        order = np.argsort(-delta.abs().numpy(), kind="stable")[: max(1, int(density * delta.numel()))]
        kept = torch.zeros_like(delta)
        kept[order.copy()] = delta[order.copy()]
        votes.append(kept)
    stacked = torch.stack(votes)
    agreeing = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
    mean = (stacked * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)
    return base + mean.reshape(base.shape)


def test_ties(three, tmp_path):
    tensors, files, share = three
    parameters = {"weight": 1, "density": 0.5}
    text = recipe("ties", [files["a"], files["b"]], base=files["base"], parameters=parameters)
    merge(text, tmp_path / "out")
    base, others = tensors["base"], (tensors["a"], tensors["b"])
    float32 = {name: [each[name].float() for each in others] for name in base}
    wanted = {name: ties(base[name].float(), float32[name], 0.5).double() for name in base}
    agree(result(tmp_path / "out"), wanted, share)


NEEDED = {"slerp": {"t": 0.5}, "nearswap": {"t": 0.01}, "nuslerp": {"weight": 1.0}, "multislerp": {"weight": 0.5}}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_bytes_of_a_merge_in_memory(method, tmp_path):
    kind = METHODS[method]
    required = {each.name: 0.5 for each in kind.parameters() if each.required}
    parameters = NEEDED.get(method, required)
    count = kind.needs.most or max(2, kind.needs.least)
    models = [network(seed) for seed in range(1, count + 1)]
    based = kind.needs.base == "required"
    base = network(50) if based else None
    files = [write(tmp_path / f"{seed}.pt", model) for seed, model in enumerate(models)]
    base_file = write(tmp_path / "base.pt", base) if base else None
    options = JobOptions(PlanOptions(seed=5, workers=2))
    merge(recipe(method, files, base=base_file, parameters=parameters), tmp_path / "out", options=options)
    wanted = merge_state_dicts(method, models, base=base, parameters=parameters, seed=5)
    merged = result(tmp_path / "out")
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(merged[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("settings", "dtype"), [({"dtype": "bfloat16"}, torch.bfloat16), ({}, torch.float32)])
def test_dtypes_of_the_output(tmp_path, settings, dtype):
    files = [write(tmp_path / "a.pt", network(1)), write(tmp_path / "b.pt", network(2, torch.bfloat16))]
    merge(recipe("linear", files, **settings), tmp_path / "out")
    assert {tensor.dtype for tensor in result(tmp_path / "out").values()} == {dtype}
    merge(recipe("linear", files, out_dtype="float16", **settings), tmp_path / "half")
    assert {tensor.dtype for tensor in result(tmp_path / "half").values()} == {torch.float16}


def test_scalars_and_empty_tensors(tmp_path):
    tensors = {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 4), "one": numbers(1, 1)}
    files = [write(tmp_path / "a.pt", tensors), write(tmp_path / "b.pt", {k: 2 * v for k, v in tensors.items()})]
    merge(recipe("linear", files), tmp_path / "out")
    merged = result(tmp_path / "out")
    assert merged["scalar"] == 4.5
    assert merged["empty"].shape == (0, 4)
