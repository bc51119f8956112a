"""Whole merges of many architectures: the numbers, and that transformers loads what was written."""

import json

import pytest
import torch
from papers import PAPERS
from tiny_checkpoints import assert_rounded, merge, octets, piece, read_model, recipe
from tiny_families import FAMILIES, LAYERS, TWO_STACKS, load

from mergekit.errors import RecipeError
from mergekit.layout import read_layout

CLEAN = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}


def load_cleanly(folder):
    model, report = load(folder)
    assert {key: report[key] for key in CLEAN} == CLEAN
    return model


def layout_of(folder):
    shapes = {name: tuple(tensor.shape) for name, tensor in read_model(folder).items()}
    return read_layout(shapes, json.loads((folder / "config.json").read_text()))


def assert_merged(folder, method, base, models, parameters):
    """Every tensor of a folder is what the paper makes of the inputs."""
    inputs = [read_model(model) for model in models]
    origin = read_model(base) if base else None
    merged = read_model(folder)
    assert merged.keys() == inputs[0].keys()
    for name, found in merged.items():
        rows = [model[name] for model in inputs]
        assert found.dtype == rows[0].dtype
        if not found.is_floating_point():
            assert torch.equal(found, rows[0]), name
            continue
        wide = [row.double().numpy() for row in rows]
        reference = PAPERS[method](origin[name].double().numpy() if origin else None, wide, parameters)
        assert_rounded(found, reference)


def test_linear_is_the_weighted_average(family, tmp_path):
    models = [family / "a", family / "b"]
    text = recipe("linear", [(models[0], {"weight": 0.6}), (models[1], {"weight": 0.4})])
    watch = merge(text, tmp_path / "out")
    assert_merged(tmp_path / "out", "linear", None, models, {"weight": [0.6, 0.4], "normalize": True})
    assert watch.plan.leftovers == ()
    assert not watch.warnings
    model = load_cleanly(tmp_path / "out")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_task_arithmetic_adds_task_vectors(family, tmp_path):
    models, weights = [family / who for who in "abc"], [0.3, 0.5, -0.2]
    entries = [(model, {"weight": weight}) for model, weight in zip(models, weights, strict=True)]
    merge(
        recipe("task_arithmetic", entries, base_model=str(family / "base"), parameters={"lambda": 0.9}), tmp_path / "o"
    )
    parameters = {"weight": weights, "lambda": 0.9, "normalize": False}
    assert_merged(tmp_path / "o", "task_arithmetic", family / "base", models, parameters)
    load_cleanly(tmp_path / "o")


def test_ties_trims_elects_and_merges(family, tmp_path):
    models, weights, densities = [family / who for who in "abc"], [1.0, 0.7, 0.5], [0.5, 0.2, 0.8]
    entries = [
        (model, {"weight": weight, "density": density})
        for model, weight, density in zip(models, weights, densities, strict=True)
    ]
    merge(recipe("ties", entries, base_model=str(family / "base"), parameters={"lambda": 0.8}), tmp_path / "o")
    parameters = {"weight": weights, "density": densities, "lambda": 0.8, "normalize": True, "rescale": False}
    assert_merged(tmp_path / "o", "ties", family / "base", models, parameters)
    load_cleanly(tmp_path / "o")


def test_slerp_walks_the_arc(family, tmp_path):
    text = recipe("slerp", [family / "base", family / "a"], base_model=str(family / "base"), parameters={"t": 0.4})
    merge(text, tmp_path / "out")
    assert_merged(tmp_path / "out", "slerp", family / "base", [family / "a"], {"t": 0.4})
    load_cleanly(tmp_path / "out")


def test_passthrough_of_one_model_is_that_model(family, tmp_path):
    merge(recipe("passthrough", [family / "a"]), tmp_path / "out")
    before, after = read_model(family / "a"), read_model(tmp_path / "out")
    assert {name: octets(tensor) for name, tensor in after.items()} == {
        name: octets(tensor) for name, tensor in before.items()
    }
    assert (tmp_path / "out" / "config.json").read_bytes() == (family / "a" / "config.json").read_bytes()
    load_cleanly(tmp_path / "out")


@pytest.mark.parametrize("family", sorted(TWO_STACKS), indirect=True)
def test_slices_alone_do_not_say_which_of_two_stacks(family, tmp_path):
    with pytest.raises(RecipeError, match="`slices` does not say which part of the model it cuts"):
        merge(recipe("passthrough", slices=[piece((family / "a", 0, 2))]), tmp_path / "out")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TWO_STACKS], indirect=True)
def test_a_stack_of_slices_has_the_layers_of_its_sources(family, tmp_path):
    stack = [piece((family / "a", 0, 2)), piece((family / "b", 1, LAYERS))]
    watch = merge(recipe("passthrough", slices=stack), tmp_path / "out")
    a, b, out = (read_model(folder) for folder in (family / "a", family / "b", tmp_path / "out"))
    layout = layout_of(tmp_path / "out")
    origins = [(a, 0), (a, 1), (b, 1), (b, 2), (b, 3)]
    assert layout.main.stack.count == len(origins)
    taken = {"pre": a, "post": b}
    for name, part in layout.parts.items():
        if part.layer is None:
            expected = taken[part.side][name]
        else:
            source, layer = origins[part.layer]
            expected = source[layout.main.stack.name(layer, part.suffix)]
        assert octets(out[name]) == octets(expected), name
    # All other tensors of a and b are reported as left over.
    left = {(entry["model"], name) for entry in watch.report["left_over"] for name in entry["tensors"]}
    used = {
        (operand.model, name) for task in watch.plan.tasks for operand in task.operands for name in operand.view.names
    }
    assert left | used == {(index, name) for index, model in enumerate((a, b)) for name in model}
    assert not left & used
    model = load_cleanly(tmp_path / "out")
    assert model.config.num_hidden_layers == len(origins)
