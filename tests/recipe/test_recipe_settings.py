import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_samples import valid

from mergekit.recipe import Case, Constant, Filtered, Gradient, coerce, evaluate, filters, leaves, matches

finite = st.floats(-1e300, 1e300)
depths = st.floats(0, 1)
scalars = st.booleans() | st.integers() | finite | st.text(max_size=5)
series = st.builds(Constant, scalars) | st.builds(Gradient, st.lists(scalars, max_size=4).map(tuple))
cases = st.builds(Case, st.none() | st.text(max_size=3), series)
settings = series | st.builds(Filtered, st.lists(cases, min_size=1, max_size=3).map(tuple))
kinds = st.sampled_from(["float", "int", "bool", "str"])

LAYERS = 4
TENSORS = {
    "embed": ("model.embed_tokens.weight", 0.0),
    "norm": ("model.norm.weight", 0.0),
    "head": ("lm_head.weight", 0.0),
    **{
        f"{part} {layer}": (f"model.layers.{layer}.{module}.weight", layer / (LAYERS - 1))
        for layer in range(LAYERS)
        for part, module in [("q", "self_attn.q_proj"), ("down", "mlp.down_proj"), ("rest", "input_layernorm")]
    },
}


def setting_of(text):
    recipe = valid(f"merge_method: passthrough\nmodels: [{{model: a}}]\nparameters:\n  scale: {text}\n")
    return recipe.parameters.settings["scale"]


def is_a(kind, value):
    try:
        coerce(value, kind)
    except ValueError:
        return False
    return True


def found(text):
    setting = setting_of(text)
    return {name: evaluate(setting, tensor, depth, "float") for name, (tensor, depth) in TENSORS.items()}


def everywhere(value, **others):
    """Expect `value` for all tensors but those whose key starts with a given word (or equals word_number)."""
    expected = {}
    for name in TENSORS:
        exact, part = others.get(name.replace(" ", "_")), others.get(name.split()[0])
        expected[name] = exact if exact is not None else part if part is not None else value
    return expected


def layerwise(outside, *values):
    return {name: values[int(name.split()[1])] if " " in name else outside for name in TENSORS}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2, 4]", layerwise(1, 1, 5 / 3, 8 / 3, 4)),
        ("[{filter: '*', value: 3}, {filter: q_proj, value: [10, 20]}]", everywhere(3)),
        (
            "[{filter: q_proj, value: [10,20]}, {filter: down_proj, value: 5}, {value: 7}]",
            everywhere(7, down=5, q_0=10, q_1=40 / 3, q_2=50 / 3, q_3=20),
        ),
        (
            "[{filter: 'q_.*', value: 3}, {filter: '.0.', value: 9}, {value: 1}]",
            everywhere(1, q_0=9, down_0=9, rest_0=9),
        ),
        ("1e1", everywhere(10)),
        ("1e-10", everywhere(1e-10)),
        ("true", everywhere(1)),
    ],
)
def test_worked_examples(text, expected):
    assert found(text) == pytest.approx(expected, rel=1e-15)


def test_one_conditional_without_a_list_is_a_list_of_one():
    assert setting_of("{filter: q_proj, value: 2}") == setting_of("[{filter: q_proj, value: 2}]")


def test_no_match_and_empty_gradients_yield_no_value():
    values = found("[{filter: q_proj, value: 2}, {filter: down_proj, value: []}, {filter: proj, value: 9}]")
    assert values == everywhere(None, q=2)
    assert found("[]") == everywhere(None)


def test_a_slice_of_one_layer_takes_the_last_value():
    assert evaluate(Gradient((1, 3)), "x", 1, "float") == 3


@pytest.mark.parametrize(
    ("filter", "matched"),
    [(None, True), ("*", True), ("", True), ("mlp", True), ("MLP", False), ("mlp.*", False), ("l.*", False)],
)
def test_filters_are_plain_text(filter, matched):
    assert matches(filter, "model.layers.1.mlp.up_proj.weight") is matched


@given(st.lists(finite, min_size=1, max_size=9), depths)
def test_gradients_interpolate_linearly(values, depth):
    position = depth * (len(values) - 1)
    low = min(int(position), max(len(values) - 2, 0))
    high = min(low + 1, len(values) - 1)
    expected = values[low] + (values[high] - values[low]) * (position - low)
    spread = max(map(abs, values))
    assert evaluate(Gradient(tuple(values)), "x", depth, "float") == pytest.approx(
        expected, rel=1e-8, abs=1e-8 * spread
    )


@given(st.lists(finite, min_size=1, max_size=9), depths)
def test_gradients_stay_between_their_values(values, depth):
    result = evaluate(Gradient(tuple(values)), "x", depth, "float")
    margin = 1e-12 * max(map(abs, values))
    assert min(values) - margin <= result <= max(values) + margin


@given(st.lists(st.booleans(), min_size=1, max_size=99), st.data())
def test_a_flag_for_every_layer_reaches_its_layer(flags, data):
    layer = data.draw(st.integers(0, len(flags) - 1))
    depth = layer / (len(flags) - 1) if len(flags) > 1 else 1.0
    assert evaluate(Gradient(tuple(flags)), "x", depth, "bool") is flags[layer]


@pytest.mark.parametrize(("depth", "value"), [(0, True), (0.3, True), (0.5, False), (0.99, False), (1, True)])
def test_flags_are_not_interpolated(depth, value):
    assert evaluate(Gradient((True, False, True)), "x", depth, "bool") is value


def test_numeric_text_is_interpolated():
    assert evaluate(Gradient(("1e-5", "1e-3")), "x", 0.5, "float") == pytest.approx(0.000505)


def test_whole_numbers_between_layers():
    assert [evaluate(Gradient((1, 7)), "x", layer / 6, "int") for layer in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match=r"`1\.5` is not a whole number"):
        evaluate(Gradient((1, 2)), "x", 0.5, "int")


@given(settings, st.text(max_size=5), depths, kinds)
def test_evaluate_yields_the_kind_or_a_value_error(setting, tensor, depth, kind):
    if all(is_a(kind, value) for _, value in leaves(setting)) and kind != "int":
        value = evaluate(setting, tensor, depth, kind)
        assert value is None or type(value).__name__ == kind
    else:
        with contextlib.suppress(ValueError):  # whether it shows depends on the case and position that are taken
            value = evaluate(setting, tensor, depth, kind)
            assert value is None or type(value).__name__ == kind


@given(settings, depths)
def test_settings_whose_scalars_are_numbers_always_evaluate(setting, depth):
    if all(is_a("float", value) for _, value in leaves(setting)):
        value = evaluate(setting, "x", depth, "float")
        assert value is None or math.isfinite(value)


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        ("1e-5", "float", 1e-5),
        (" 2 ", "float", 2.0),
        (3, "float", 3.0),
        (True, "float", 1.0),
        (2.0, "int", 2),
        ("1e1", "int", 10),
        ("9007199254740993", "int", 9007199254740993),
        (False, "int", 0),
        ("yes", "bool", True),
        ("OFF", "bool", False),
        (0, "bool", False),
        (1.0, "bool", True),
        ("1", "bool", True),
        ("l2", "str", "l2"),
    ],
)
def test_coerce(value, kind, result):
    found = coerce(value, kind)
    assert found == result
    assert type(found).__name__ == kind


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("abc", "float", "`abc` is not a number"),
        ("", "float", "`` is not a number"),
        ("nan", "float", "`nan` is not a number"),
        (math.inf, "float", "`inf` is not a number"),
        (10**400, "int", "is not a whole number"),
        (10**400, "float", "is not a number"),
        (2.5, "int", "`2.5` is not a whole number"),
        ("true", "int", "`true` is not a whole number"),
        (math.nan, "int", "`nan` is not a whole number"),
        (2, "bool", "`2` is not true or false"),
        ("maybe", "bool", "`maybe` is not true or false"),
        (1, "str", "`1` is not text; put it in quotes"),
        (True, "str", "`True` is not text"),
    ],
)
def test_coerce_refuses(value, kind, message):
    with pytest.raises(ValueError, match=message):
        coerce(value, kind)


@given(finite, st.integers(-(2**63), 2**63 - 1), st.booleans())
def test_what_was_coerced_and_written_is_coerced_to_the_same(number, whole, flag):
    assert coerce(repr(number), "float") == coerce(number, "float") == number
    assert coerce(str(whole), "int") == coerce(whole, "int") == whole
    assert coerce(str(flag), "bool") is coerce(flag, "bool") is flag


def test_leaves_and_filters_name_their_places():
    setting = setting_of("[{filter: q, value: [1, x]}, {filter: '', value: true}, {value: 3}]")
    assert list(leaves(setting)) == [("[0].value[0]", 1), ("[0].value[1]", "x"), ("[1].value", True), ("[2].value", 3)]
    assert list(filters(setting)) == [("[0].filter", "q"), ("[1].filter", "")]
    assert list(leaves(Constant(5))) == [("", 5)]
    assert list(leaves(Gradient((5, 6)))) == [("[0]", 5), ("[1]", 6)]
    assert list(filters(Gradient((5, 6)))) == []
