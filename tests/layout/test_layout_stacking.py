"""What the matrix of families found: counts by lists, entries by layer number, stages, tables with a part per layer."""

import json

import pytest

from mergekit.errors import IncompatibleModelsError
from mergekit.layout import edit_config, packed_by_layer, read_layout

LAYER = {"attn.weight": (8, 8), "mlp.weight": (16, 8), "norm.weight": (8,)}


def shapes(count=4, prefix="model.layers", **more):
    layers = {f"{prefix}.{n}.{suffix}": shape for n in range(count) for suffix, shape in LAYER.items()}
    return {"model.embed_tokens.weight": (32, 8), **layers, "model.norm.weight": (8,), **more}


def stacked(config, order, tensors=None):
    layout = read_layout(tensors or shapes(), config)
    origins = [(config, layout, layer) for layer in order]
    return json.loads(edit_config(json.dumps(config), donor=layout, stacked={layout.main.name: origins}))


def test_a_list_of_kinds_counts_the_layers_where_no_number_does():
    assert stacked({"layers_block_type": list("abcd")}, [0, 1, 1, 2, 3]) == {"layers_block_type": list("abbcd")}


@pytest.mark.parametrize("width", [1, 2])
def test_entries_by_layer_number_follow_their_layers(width):
    number = "{:0" + str(width) + "}"
    config = {"num_hidden_layers": 4, "per_layer_config": {number.format(n): {"head_dim": n} for n in (1, 3)}}
    out = stacked(config, [0, 1, 2, 1, 2, 3])
    assert out["per_layer_config"] == {number.format(n): {"head_dim": d} for n, d in ((1, 1), (3, 1), (5, 3))}


def test_a_mapping_by_anything_else_stays():
    config = {"num_hidden_layers": 4, "layer_names": {"a": 1, "b": 2}}
    assert stacked(config, [0, 1, 2, 1, 2, 3])["layer_names"] == config["layer_names"]


@pytest.mark.parametrize(
    ("until", "order", "expected"), [(3, (0, 1, 2, 1, 2, 3), 5), (-1, (0, 1, 2, 3, 3), -1), (2, (0, 1, 1, 2, 3), 3)]
)
def test_the_number_of_the_last_layer_before_a_run_moves(until, order, expected):
    out = stacked({"num_hidden_layers": 4, "moe_layer_end_index": until}, order)
    assert out["moe_layer_end_index"] == expected


def test_a_run_that_would_be_broken_is_refused():
    with pytest.raises(IncompatibleModelsError, match="moe_layer_end_index"):
        stacked({"num_hidden_layers": 4, "moe_layer_end_index": 2}, [0, 3, 1, 2])


def test_a_number_that_may_count_the_layers_is_not_passed_over():
    config = {"other_config": {"num_hidden_layers": 4}}
    with pytest.raises(IncompatibleModelsError, match="does not say"):
        stacked(config, [0, 1, 2, 1, 2, 3])


def test_stages_of_several_widths_are_no_stack():
    stages = {f"encoder.stages.{n}.layers.{m}.weight": (8 << n, 8 << n) for n in range(4) for m in range(2)}
    assert read_layout(stages, {"depths": [2, 2, 2, 2], "num_layers": 4}).main.stack is None
    even = dict.fromkeys(stages, (8, 8))
    assert read_layout(even, {"depths": [2, 2, 2, 2], "num_layers": 4}).main.stack.count == 4


def test_layers_inside_of_a_model_called_expert_are_layers():
    tensors = shapes(prefix="action_expert.model.layers")
    assert read_layout(tensors, {"num_hidden_layers": 4}).main.stack.prefix == "action_expert.model.layers"


@pytest.mark.parametrize(
    ("name", "shape", "packed"),
    [
        ("model.embed_tokens_per_layer.weight", (32, 4 * 3), True),
        ("model.per_layer_model_projection.weight", (4 * 3, 8), True),
        ("model.per_layer_projection_norm.weight", (3,), False),
        ("contact_head.regression.weight", (1, 4 * 2), True),
        ("model.position.weight", (64, 8), False),
    ],
)
def test_tables_with_a_part_per_layer_are_found(name, shape, packed):
    tensors = shapes(**{name: shape})
    layout = read_layout(tensors, {"num_hidden_layers": 4})
    assert packed_by_layer(tensors, layout, layout.main) == ([name] if packed else [])


def test_lists_numbered_like_the_layers_are_found():
    queries = {f"model.queries.{n}": (8,) for n in range(4)}
    others = {f"model.few.{n}": (8,) for n in range(3)}
    tensors = shapes(**queries, **others)
    layout = read_layout(tensors, {"num_hidden_layers": 4})
    assert packed_by_layer(tensors, layout, layout.main) == list(queries)
