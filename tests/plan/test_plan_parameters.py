"""Which value of a parameter holds for which tensor, and which settings are refused; no weight is read."""

import pytest
from tiny_checkpoints import piece, recipe

from mergekit.errors import RecipeError
from mergekit.plan import PlanOptions, plan_merge

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def plan(text, **options):
    return plan_merge(text, file="merge.yml", options=PlanOptions(**options))


def scales(text):
    """Factor of each output tensor of a passthrough merge."""
    return {task.out.name: task.method.scale[0] for task in plan(text).tasks}


def expanded(embedding, layers, outside):
    """A row of the table for every tensor: a layer is a number, or numbers by part of the name with a rest."""
    expected = {EMBEDDING: embedding, NORM: outside, HEAD: outside}
    for number, values in enumerate(layers):
        parts = values if isinstance(values, dict) else {"": values}
        for name in SUFFIXES:
            value = next(value for part, value in parts.items() if part in name)
            expected[f"model.layers.{number}.{name}"] = value
    return expected


SUFFIXES = (
    *(f"self_attn.{letter}_proj.weight" for letter in "qkvo"),
    *(f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)

WHOLE = {
    "gradient": ([1, 2, 4], (1, [1, 5 / 3, 8 / 3, 4], 1)),
    "star first": ([{"filter": "*", "value": 3}, {"filter": "q_proj", "value": [10, 20]}], (3, [3] * 4, 3)),
    "filters and gradients": (
        [{"filter": "q_proj", "value": [10, 20]}, {"filter": "down_proj", "value": 5}, {"value": 7}],
        (7, [{"q_proj": q, "down_proj": 5, "": 7} for q in (10, 40 / 3, 50 / 3, 20)], 7),
    ),
    "plain substrings": (
        [{"filter": ".0.", "value": 9}, {"value": 1}],
        (1, [9, 1, 1, 1], 1),
    ),
    "no list": ({"filter": "q_proj", "value": 2}, (1, [{"q_proj": 2, "": 1}] * 4, 1)),
    "string": ("1e1", (10, [10] * 4, 10)),
    "truth": (True, (1, [1] * 4, 1)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_settings_of_a_whole_model(name, llamas):
    setting, row = WHOLE[name]
    found = scales(recipe("passthrough", [llamas / "a"], parameters={"scale": setting}))
    assert found == pytest.approx(expanded(*row))


def test_filters_are_no_regular_expressions(llamas):
    """`q_.*` stands for itself; since no tensor is called so, it is a mistake."""
    setting = [{"filter": "q_.*", "value": 3}, {"filter": ".0.", "value": 9}, {"value": 1}]
    with pytest.raises(RecipeError, match=r"filter `q_\.\*` matches no tensor"):
        scales(recipe("passthrough", [llamas / "a"], parameters={"scale": setting}))


def test_a_gradient_starts_anew_in_every_slice(llamas):
    slices = [piece((llamas / "a", 0, 1)), piece((llamas / "a", 1, 4))]
    found = scales(recipe("passthrough", slices=slices, parameters={"scale": [1, 3]}))
    assert found == pytest.approx(expanded(1, [3, 1, 2, 3], 1))


def test_source_before_slice_before_module_before_everything(llamas):
    slices = [
        piece((llamas / "a", 0, 2, {"scale": 2}), parameters={"scale": 9}),
        piece((llamas / "a", 2, 4), parameters={"scale": 8}),
    ]
    found = scales(recipe("passthrough", slices=slices, parameters={"scale": 3}))
    assert found == expanded(2, [2, 2, 8, 8], 8)


def test_a_module_comes_before_everything_and_after_its_slices(llamas):
    slices = [piece((llamas / "a", 0, 2), parameters={"scale": 9}), piece((llamas / "a", 2, 4))]
    modules = {"default": {"slices": slices, "parameters": {"scale": 4}}}
    assert scales(recipe("passthrough", modules=modules, parameters={"scale": 3})) == expanded(9, [9, 9, 4, 4], 4)


def test_a_level_that_yields_nothing_falls_through(llamas):
    own = {"scale": [{"filter": "q_proj", "value": 2}, {"filter": "down_proj", "value": []}]}
    found = scales(recipe("passthrough", [(llamas / "a", own)], parameters={"scale": 5}))
    assert found == expanded(5, [{"q_proj": 2, "": 5}] * 4, 5)


def test_per_model_filters_see_input_names_and_shared_ones_output_names(llamas):
    slices = [piece((llamas / "a", 2, 4))]
    parameters = {
        "weight": [{"filter": "layers.2.", "value": 10}, {"value": 1}],
        "normalize": [{"filter": "layers.0.", "value": False}, {"value": True}],
    }
    tasks = plan(recipe("linear", slices=slices, parameters=parameters)).tasks
    found = {task.out.name: (task.method.weight, task.method.normalize) for task in tasks}
    for name, values in found.items():
        assert values == ({True: ((10.0,), False), False: ((1.0,), True)}[".layers.0." in name]), name
    assert {name for name in found if ".layers." in name} == {f"model.layers.{n}.{s}" for n in (0, 1) for s in SUFFIXES}


def test_values_of_each_model_stay_with_it(llamas):
    entries = [(llamas / "a", {"weight": 0.7}), (llamas / "base", {}), (llamas / "b", {"density": 0.3})]
    found = plan(recipe("ties", entries, base_model=str(llamas / "base"), parameters={"lambda": 0.5}))
    for task in found.tasks:
        assert [str(found.models[operand.model].ref.model.path) for operand in task.operands] == [
            str(llamas / name) for name in ("base", "a", "b")
        ]
        assert task.based
        assert (task.method.weight, task.method.density) == ((0.7, 1.0), (1.0, 0.3))
        assert (task.method.lambda_, task.method.normalize, task.method.rescale) == (0.5, True, False)


# Mistakes


def problems(text, **options):
    with pytest.raises(RecipeError) as caught:
        plan(text, **options)
    return [str(problem) for problem in caught.value.problems]


def test_a_misspelled_parameter_is_an_error_with_the_right_spelling(llamas):
    (problem,) = problems(recipe("ties", [(llamas / "a", {"densty": 0.5})], base_model=str(llamas / "base")))
    assert "`densty`" in problem
    assert "try `density`" in problem
    assert "merge.yml:" in problem


def test_a_parameter_of_another_method_is_a_warning_once(llamas):
    entries = [(llamas / name, {"weight": 1, "density": 0.5}) for name in "abc"]
    found = plan(recipe("linear", entries, parameters={"int8_mask": True})).findings
    assert [problem.what for problem in found.warnings] == [
        "parameter `density` is not read by linear and has no effect",
        "parameter `int8_mask` is not read by linear and has no effect",
    ]


def test_strict_makes_warnings_errors(llamas):
    text = recipe("linear", [(llamas / "a", {"density": 0.5})])
    assert plan(text).findings.warnings
    (problem,) = problems(text, strict=True)
    assert "`density` is not read by linear" in problem


def test_a_shared_parameter_alike_under_all_models_counts_once(llamas):
    entries = [(llamas / name, {"weight": 1, "normalize": False}) for name in "ab"]
    found = plan(recipe("linear", entries))
    assert [task.method.normalize for task in found.tasks] == [False] * len(found.tasks)
    assert [notice for notice in found.findings.notices if "counts once" in notice]
    assert not found.findings.warnings


@pytest.mark.parametrize("other", [{"weight": 1, "normalize": True}, {"weight": 1}])
def test_a_shared_parameter_that_differs_is_an_error(other, llamas):
    text = recipe("linear", [(llamas / "a", {"normalize": False}), (llamas / "b", other)])
    assert all("`normalize` is one value for all models" in problem for problem in problems(text))


def test_parameters_of_the_base_are_warned_about(llamas):
    entries = [(llamas / "base", {"weight": 1, "density": 0.1}), (llamas / "a", {"weight": 0.5})]
    found = plan(recipe("ties", entries, base_model=str(llamas / "base")))
    assert [problem.what for problem in found.findings.warnings] == [
        f"parameter `{name}` of the base model has no effect" for name in ("weight", "density")
    ]
    assert {task.method.density for task in found.tasks} == {(1.0,)}


@pytest.mark.parametrize("density", [1.5, -0.1, [0.5, 2]])
def test_values_out_of_range_are_errors(density, llamas):
    text = recipe("ties", [(llamas / "a", {"density": density})], base_model=str(llamas / "base"))
    (problem,) = problems(text)
    assert "`density` is" in problem
    assert "expected 0 to 1" in problem


@pytest.mark.parametrize("value", ["much", ["a", 1], {"value": "none"}])
def test_values_of_another_type_are_errors(value, llamas):
    found = problems(recipe("linear", [(llamas / "a", {"weight": value})]))
    assert any("weight" in problem for problem in found)


def test_weights_that_add_up_to_nothing_are_an_error(llamas):
    entries = [(llamas / "a", {"weight": 1}), (llamas / "b", {"weight": -1})]
    (problem,) = problems(recipe("linear", entries))
    assert "the weights add up to 0" in problem
    assert plan(recipe("linear", entries, parameters={"normalize": False})).tasks


def test_a_filter_that_matches_nothing_is_an_error_with_a_likely_name(llamas):
    setting = [{"filter": "self_atn", "value": 0.1}, {"value": 0.5}]
    (problem,) = problems(recipe("linear", [(llamas / "a", {"weight": setting})]))
    assert "filter `self_atn` matches no tensor" in problem
    assert "try `self_attn`" in problem


def test_a_required_parameter_that_is_missing_is_named_once(llamas):
    text = recipe("slerp", [llamas / "base", llamas / "a"], base_model=str(llamas / "base"))
    (problem,) = problems(text)
    assert "slerp needs the parameter `t`" in problem
    gap = recipe(
        "slerp",
        [llamas / "base", llamas / "a"],
        base_model=str(llamas / "base"),
        parameters={"t": {"filter": "mlp", "value": 0.5}},
    )
    (problem,) = problems(gap)
    assert "slerp needs the parameter `t`" in problem
