"""Recipes as published guides print them, with their leftovers and slips: all of them run."""

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import merge, read_model
from tiny_families import LAYERS, load

GUIDES = Path(__file__).parent / "guides"
NO_BASE = "no base_model is given: slerp takes the first model, models/mistral/a, as base"

OF_BASE = [f"parameter `{name}` of the base model has no effect" for name in ("weight", "density")]


def unread(method, *names):
    return [f"parameter `{name}` is not read by {method} and has no effect" for name in names]


TOLD = {
    "dare_ties_int8": (unread("dare_ties", "int8_mask"), []),
    "dare_ties_leftovers": (OF_BASE + unread("dare_ties", "dare_linear", "dare_density", "dare_epsilon"), []),
    "dare_ties_without_base_parameters": (OF_BASE, []),
    "linear_three": ([], []),
    "passthrough_halves": ([], []),
    "passthrough_keep_ends": ([], []),
    "slerp_layerwise_without_base": ([], [NO_BASE]),
    "slerp_models_and_slices": ([], ["`models` only repeats the models of `slices` and is left aside"]),
    "slerp_without_base": ([], [NO_BASE]),
    "task_arithmetic_negative": (["parameter `weight` of the base model has no effect"], []),
    "ties_base_in_models": (OF_BASE + unread("ties", "int8_mask"), []),
}
"""Warnings and notices of each guide."""


@pytest.fixture
def workshop(families, tmp_path, monkeypatch):
    """A folder where the models are called as in the guides."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mistral").symlink_to(families("mistral").root)
    monkeypatch.chdir(tmp_path)


def test_every_guide_has_its_expectations():
    assert {file.stem for file in GUIDES.iterdir()} == TOLD.keys()


@pytest.mark.parametrize("name", TOLD)
def test_a_guide_runs_and_transformers_loads_the_result(name, workshop):
    text = (GUIDES / f"{name}.yml").read_text()
    watch = merge(text, Path("out"))
    assert (watch.warnings, watch.notices) == TOLD[name]
    assert Path("out/mergekit_config.yml").read_text() == text
    assert {tensor.dtype for tensor in read_model(Path("out")).values()} == {torch.bfloat16}
    model, report = load("out")
    assert not any(report.values())
    assert model.config.num_hidden_layers == LAYERS
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
