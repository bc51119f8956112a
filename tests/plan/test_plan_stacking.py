"""Slices where tensors outside of the layers hold a part for each layer."""

import pytest
import torch
from safetensors.torch import save_file

from mergekit.errors import UnsupportedError
from mergekit.plan import plan_merge

TABLE = "model.embed_tokens_per_layer.weight"


@pytest.fixture
def model(tmp_path):
    def make(name, **more):
        tensors = {f"model.layers.{n}.mlp.weight": torch.zeros(4, 4) for n in range(4)}
        tensors |= {"model.embed_tokens.weight": torch.zeros(8, 4), **more}
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "x", "num_hidden_layers": 4, "vocab_size": 8}')
        return folder

    return make


def plan(*slices):
    pieces = [
        "- sources: [" + ", ".join(f"{{model: {m}, layer_range: [{first}, {end}]}}" for m in models) + "]"
        for models, first, end in slices
    ]
    method = "linear" if len(slices[0][0]) > 1 else "passthrough"
    weights = "parameters: {weight: 1}\n" if method == "linear" else ""
    return plan_merge(f"merge_method: {method}\n{weights}slices:\n" + "\n".join(pieces))


def test_another_order_is_refused(model):
    a = model("a", **{TABLE: torch.zeros(8, 12)})
    with pytest.raises(UnsupportedError, match=TABLE):
        plan(([a], 0, 3), ([a], 1, 4))


def test_layers_of_several_models_in_turn_are_refused(model):
    a, b = (model(name, **{TABLE: torch.zeros(8, 12)}) for name in "ab")
    with pytest.raises(UnsupportedError, match=TABLE):
        plan(([a], 0, 2), ([b], 2, 4))


def test_the_same_order_is_not(model):
    a, b = (model(name, **{TABLE: torch.zeros(8, 12)}) for name in "ab")
    assert TABLE in {task.out.name for task in plan(([a, b], 0, 2), ([a, b], 2, 4)).tasks}


def test_nor_are_models_without_such_a_table(model):
    a = model("a")
    assert len(plan(([a], 0, 3), ([a], 1, 4)).tasks) == 7
