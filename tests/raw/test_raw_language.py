"""Recipes for raw checkpoints: keys, parameters, and what is wrong with them."""

import pytest
import torch
from raw_samples import merge, network, planned, recipe, result, write

from mergekit.errors import RecipeError
from mergekit.raw import read_raw


def mistakes(text):
    _, findings = read_raw(text, file="raw.yml")
    return findings


def test_every_key_is_read():
    text = """\
merge_method: ties
base_model: ./base.pt
models:
- model: a@1+b.pt
  parameters: {weight: 0.5}
parameters: {density: 0.5}
dtype: float32
out_dtype: bfloat16
"""
    recipe, findings = read_raw(text)
    assert not findings.errors
    assert not findings.warnings
    assert [str(ref) for ref in recipe.references()] == ["base.pt", "a@1+b.pt"]
    assert recipe.references()[1].adapter is None  # paths are literal
    assert (recipe.dtype, recipe.out_dtype) == ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("text", "what", "line", "hint"),
    [
        ("merge_metod: linear\nmodels: [{model: a}]", "unknown key `merge_metod`", 1, "`merge_method`"),
        ("merge_method: linear\nmodels:\n- model: a\n  paramaters: {weight: 1}", "`paramaters`", 4, "`parameters`"),
        ("merge_method: linear\nmodels:\n- path: a\n  weight: 1", "`path`", 3, "`model`"),
        ("merge_method: linaer\nmodels: [{model: a}]", "`linaer` is not a merge method", 1, "`linear`"),
        ("merge_method: linear\nmodels: []", "there is nothing to merge", 2, None),
        ("merge_method: linear", "`models` is missing", 1, None),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: bfloat61", "`bfloat61` is not a dtype", 3, "`bfloat16`"),
        ("merge_method: linear\nmodels: [{model: {model: a}}]", "a mapping is not the path", 2, None),
        ("merge_method: linear\nmodels: [{model: a}, {model: ./a}]", "listed twice", 2, None),
    ],
)
def test_mistakes_have_a_line_and_a_suggestion(text, what, line, hint):
    error = mistakes(text).errors[0]
    assert what in error.what
    assert error.place.line == line
    assert hint is None or error.hint == hint


def test_keys_of_models_with_a_config_have_no_effect():
    text = "merge_method: linear\nmodels: [{model: a}]\nchat_template: chatml\nslices: []"
    findings = mistakes(text)
    assert [warning.place.path for warning in findings.warnings] == ["chat_template", "slices"]


@pytest.mark.parametrize("value", ["[0.1, 0.9]", "[{filter: conv, value: [0, 1]}, {value: 1}]"])
@pytest.mark.parametrize("level", ["model", "all"])
def test_gradients_are_refused(value, level):
    own, common = (f", parameters: {{weight: {value}}}", "") if level == "model" else ("", f"weight: {value}")
    text = f"merge_method: linear\nmodels:\n- {{model: a{own}}}\nparameters: {{{common}}}"
    [error] = mistakes(text).errors
    assert error.what == "`weight` has a list of values, and there are no layers here to spread them over"
    assert error.place.line == (3 if level == "model" else 4)


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f"{seed}.pt", network(seed)) for seed in (1, 2)]


def test_parameters_of_a_model_stand_before_those_of_all(files, tmp_path):
    each = [{"weight": [{"filter": "head.", "value": 3}, {"filter": "conv", "value": 0}]}, {}]
    merge(recipe("linear", files, each=each, parameters={"weight": 1}), tmp_path / "out")
    a, b, merged = network(1), network(2), result(tmp_path / "out")
    assert torch.allclose(merged["head.weight"], (3 * a["head.weight"] + b["head.weight"]) / 4)
    assert torch.allclose(merged["conv.weight"], b["conv.weight"])
    assert torch.allclose(merged["norm.weight"], (a["norm.weight"] + b["norm.weight"]) / 2)


def test_filters_and_parameters_are_checked(files):
    each = [{"weight": [{"filter": "haed", "value": 3}, {"value": 1}]}, {"wieght": 1}]
    with pytest.raises(RecipeError) as caught:
        planned(recipe("linear", files, each=each))
    assert "unknown parameter `wieght`" in str(caught.value)
    with pytest.raises(RecipeError, match="filter `haed` matches no tensor"):
        planned(recipe("linear", files, each=[each[0], {}]))


def test_the_number_of_checkpoints_is_checked(files, tmp_path):
    third = write(tmp_path / "3.pt", network(3))
    with pytest.raises(RecipeError, match="slerp does not merge 2 models besides the base"):
        planned(recipe("slerp", [*files, third], base=files[0], parameters={"t": 0.5}))
    with pytest.raises(RecipeError, match="ties needs a base model"):
        planned(recipe("ties", files, parameters={"weight": 1}))


def test_strict_makes_errors_of_warnings(files):
    text = recipe("linear", files, parameters={"density": 1})
    assert planned(text).findings.warnings
    with pytest.raises(RecipeError, match="`density` is not read by linear"):
        planned(text, strict=True)
