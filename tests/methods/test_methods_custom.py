"""Methods made of functions."""

import pickle
import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from driver import PATHS, run_method

from mergekit.kernels import GRAIN, arrays
from mergekit.methods import Block, Bounds, Method, MethodError, Needs, PerModel, Target, merge_method, parameter
from mergekit.methods.declarations import flaws

SHAPE = (3, GRAIN + 5)


@merge_method(title="Soft swap", reference="https://example.org/swap")
def soft_swap(base, models, *, weight: PerModel = 1.0, t: Annotated[float, Bounds(0, 1)] = 0.5, lambda_: float):
    """Go part of the way to the weighted sum of the models.

    Parameters:
        weight: of each model.
        t: how far.
        lambda: factor.
    """
    total = sum(share * model for share, model in zip(weight, models, strict=True))
    return (1 - t) * base + t * lambda_ * total


def swapping(weight, t, factor):
    return soft_swap(given_weight=weight, given_t=t, given_lambda_=factor)


def operands(count=3, shape=SHAPE):
    draw = np.random.default_rng(3).standard_normal
    return [draw(shape, np.float32) for _ in range(count)]


def made(function, **settings):
    return merge_method(title="Made", **settings)(function)


def test_keyword_only_arguments_are_the_parameters():
    weight, t, factor = soft_swap.parameters()
    assert (weight.name, weight.kind, weight.per_model, weight.default) == ("weight", "float", True, 1.0)
    assert (t.name, t.low, t.high, t.bounds, t.required) == ("t", 0, 1, "0 to 1", False)
    assert (factor.name, factor.field, factor.required) == ("lambda", "given_lambda_", True)


def test_every_kind_of_parameter():
    def kinds(base, models, *, a: int = 1, b: bool = True, c: str = "x", d: tuple[int, ...] = 2): ...

    found = made(kinds).parameters()
    assert [(each.kind, each.per_model) for each in found] == [
        ("int", False),
        ("bool", False),
        ("str", False),
        ("int", True),
    ]


def test_words_to_choose_from():
    def norms(base, models, *, norm: Literal["l1", "l2"] = "l2", each: tuple[Literal["a", "b"], ...]): ...

    norm, each = made(norms).parameters()
    assert (norm.kind, norm.choices, norm.default, norm.per_model) == ("str", ("l1", "l2"), "l2", False)
    assert (each.kind, each.choices, each.required, each.per_model) == ("str", ("a", "b"), True, True)


def test_the_class_says_what_the_function_says():
    assert issubclass(soft_swap, Method)
    assert (soft_swap.name, soft_swap.title, soft_swap.reference) == (
        "soft_swap",
        "Soft swap",
        "https://example.org/swap",
    )
    assert soft_swap.__doc__.startswith("Go part of the way")
    assert str(made(lambda models: models[0], base="ignored", least=2, most=2).needs) == "2 models"
    assert not list(flaws(soft_swap))


def test_instances_are_frozen_equal_and_pickled_by_name():
    method = swapping((1.0, 2.0), t=0.5, factor=1.0)
    assert pickle.loads(pickle.dumps(method)) == method
    assert method != swapping((1.0, 2.0), t=0.6, factor=1.0)
    with pytest.raises(AttributeError):
        method.given_t = 1


@pytest.mark.parametrize("name", [name for name in dir(soft_swap) if not name.startswith("_")])
def test_parameters_may_be_called_like_parts_of_the_class(name):
    scope = {}
    exec(f"def scaled(models, *, {name}: float = 1.0):\n    return {name} * models[0]", scope)
    method = made(scope["scaled"], base="ignored")
    (declared,) = method.parameters()
    assert (declared.name, declared.default, list(flaws(method))) == (name, 1.0, [])
    (model,) = operands(1)
    np.testing.assert_array_equal(run_method(method(**{declared.field: 3.0}), None, [model], "F32"), 3 * model)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stripe", [None, 1, 2])
def test_the_function_decides_the_result_on_every_path(path, stripe):
    base, *models = operands()
    method = swapping((1.0, -2.0), t=0.25, factor=3.0)
    merged = run_method(method, base, models, "F32", stripe, path)
    np.testing.assert_allclose(merged, 0.75 * base + 0.75 * (models[0] - 2 * models[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_functions_on_whole_tensors_see_them_in_their_shape(path):
    seen = []

    def column_means(base, models):
        seen.append((base.shape, models.shape))
        return base + (models - base).mean(1, keepdims=True).mean(0)

    base, *models = operands()
    merged = run_method(made(column_means, whole=True)(), base, models, "F32", 1, path)
    assert seen == [(SHAPE, (2, *SHAPE))]
    np.testing.assert_allclose(merged, base + np.mean([model - base for model in models], (0, 1)), atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_functions_on_torch_tensors_get_torch_tensors(path):
    def middle(base, models):
        assert isinstance(base, torch.Tensor)
        assert models.dtype == torch.float32
        return torch.median(models, 0).values.to(torch.float64)

    base, *models = operands(4)
    merged = run_method(made(middle, arrays="torch")(), base, models, "F32", 1, path)
    np.testing.assert_array_equal(merged, np.median(models, 0))


@pytest.mark.parametrize("path", PATHS)
def test_functions_on_numpy_arrays_get_numpy_arrays_that_they_cannot_change(path):
    def middle(base, models):
        assert isinstance(base, np.ndarray)
        assert not models.flags.writeable
        return base

    base, *models = operands()
    np.testing.assert_array_equal(run_method(made(middle)(), base, models, "F32", 1, path), base)


def test_torch_functions_on_the_cpu_work_on_the_engine_s_own_memory():
    method = made(lambda base, models: models[1], arrays="torch")()
    rows = np.stack([each.reshape(-1) for each in operands()])
    merged = method.merge(Block(rows, True, 0, arrays, Target("tensor", SHAPE)), {})
    assert np.shares_memory(merged, rows[2])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 1, 3)])
@pytest.mark.parametrize("whole", [False, True])
def test_any_shape(shape, whole, path):
    base, *models = (np.asarray(each, np.float32) for each in operands(3, shape))
    mean = made(lambda base, models: base + (models - base).mean(0), whole=whole)
    np.testing.assert_allclose(run_method(mean(), base, models, "F32", 1, path), np.mean(models, 0), rtol=1e-5)


def test_without_a_base():
    models = operands()
    alone = made(lambda base, models: models[0] if base is None else base, base="optional")
    np.testing.assert_array_equal(run_method(alone(), None, models, "F32"), models[0])
    np.testing.assert_array_equal(run_method(alone(), models[0], models[1:], "F32"), models[0])
    ignored = made(lambda models: models[-1], base="ignored")
    np.testing.assert_array_equal(run_method(ignored(), None, models, "F32"), models[-1])


def failure(function, path="fused", **settings):
    base, *models = operands(3, (6,))
    with pytest.raises(MethodError) as caught:
        run_method(made(function, **settings)(), base, models, "F32", None, path)
    problem = caught.value.problem
    assert problem.place.file == __file__
    return problem


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("returned", "shown"),
    [
        (lambda base, models: models, "float32 of shape (2, 6) (numpy.ndarray)"),
        (lambda base, models: models.astype(int)[0], "int64 of shape (6,) (numpy.ndarray)"),
        (lambda base, models: models[0] > 0, "bool of shape (6,) (numpy.ndarray)"),
        (lambda base, models: models[0] * 1j, "complex64 of shape (6,) (numpy.ndarray)"),
        (lambda base, models: None, "no array (NoneType)"),
        (lambda base, models: [0.0] * 6, "no array (list)"),
        (lambda base, models: torch.zeros(6), "torch.float32 of shape (6,) (torch.Tensor)"),
    ],
)
def test_a_wrong_result_is_refused(returned, shown, path):
    problem = failure(returned, path)
    assert problem.what == f"`<lambda>` returned {shown} for `tensor`"
    assert problem.expected == "a NumPy array of float32, shape (6,)"


def test_numpy_arrays_are_no_torch_tensors():
    problem = failure(lambda base, models: np.zeros(6, np.float32), arrays="torch")
    assert problem.expected == "a torch tensor of float32, shape (6,)"


def test_what_does_not_fit_float32_is_infinite():
    base, *models = operands(3, (2,))
    huge = made(lambda base, models: np.full(2, 1e300))
    assert np.isinf(run_method(huge(), base, models, "F32")).all()


@pytest.mark.parametrize("path", PATHS)
def test_an_exception_names_method_tensor_and_line(path):
    def stumbles(base, models):
        return base / {}["nothing"]

    problem = failure(stumbles, path)
    assert problem.what == "`stumbles` failed on `tensor`: KeyError: 'nothing'"
    line = Path(__file__).read_text().splitlines()[problem.place.line - 1]
    assert line.strip() == 'return base / {}["nothing"]'


def test_changing_the_operands_fails():
    def spoils(base, models):
        models *= 2
        return models[0]

    assert "read-only" in failure(spoils).what


def without_parameters(base, models, **others): ...


def without_base(models): ...


def without_annotation(base, models, *, t=1.0): ...


def odd_annotation(base, models, *, t: complex = 1.0): ...


def odd_list(base, models, *, t: list[float]): ...


def odd_words(base, models, *, t: Literal[1, "one"]): ...


def unknown_annotation(base, models, *, t: "Weight"): ...  # noqa: F821


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (without_parameters, "its arguments are others"),
        (without_base, "its arguments are others"),
        (without_annotation, "the annotation of `t` is no kind of parameter"),
        (odd_annotation, "the annotation of `t` is no kind of parameter"),
        (odd_list, "the annotation of `t` is no kind of parameter"),
        (odd_words, "the annotation of `t` is no kind of parameter"),
        (unknown_annotation, "an annotation cannot be read: NameError: name 'Weight' is not defined"),
    ],
)
def test_functions_of_another_form_are_refused(function, what):
    with pytest.raises(
        MethodError, match=re.escape(f"`{function.__name__}` cannot be a merge method: {what}")
    ) as caught:
        made(function)
    assert (caught.value.problem.place.file, caught.value.problem.place.line) == (
        __file__,
        function.__code__.co_firstlineno,
    )


@pytest.mark.parametrize(
    ("settings", "what", "expected"),
    [
        ({"base": "requird"}, "`base` is 'requird'", '"required" or "optional" or "ignored"'),
        ({"base": None}, "`base` is None", '"required" or "optional" or "ignored"'),
        ({"arrays": "jax"}, "`arrays` is 'jax'", '"numpy" or "torch"'),
        ({"least": 0}, "`least` is 0", "a whole number of models, at least 1"),
        ({"least": 1.5}, "`least` is 1.5", "a whole number of models, at least 1"),
        ({"least": True}, "`least` is True", "a whole number of models, at least 1"),
        ({"least": 2, "most": 1}, "`most` is 1", "a whole number of models, at least 2, or None"),
        ({"most": "3"}, "`most` is '3'", "a whole number of models, at least 1, or None"),
        ({"reference": None}, "`reference` is None", "text"),
        ({"title": 3}, "`title` is 3", "text"),
    ],
)
def test_settings_of_the_decorator_are_checked(settings, what, expected):
    with pytest.raises(MethodError) as caught:
        merge_method(**{"title": "Made", **settings})(without_parameters)
    problem = caught.value.problem
    assert problem.what == f"`without_parameters` cannot be a merge method: {what}"
    assert problem.expected == expected
    assert (problem.place.file, problem.place.line) == (__file__, without_parameters.__code__.co_firstlineno)


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Needs("required"), "at least 1 model and a base"),
        (Needs("required", 1, 1), "1 model and a base"),
        (Needs("optional", 2), "at least 2 models, a base if wanted"),
        (Needs("ignored", 1, 3), "at least 1 model"),
    ],
)
def test_needs_in_words(needs, words):
    assert str(needs) == words


def test_only_functions_are_taken():
    with pytest.raises(MethodError, match="expected a function, written with `def`"):
        made(Path)


class Bare(Method):
    name = "bare"


class Undecorated(Method):
    name, title, reference, needs = "undecorated", "Undecorated", "", soft_swap.needs
    t: float = parameter(0.5, doc="how far")

    def merge(self, block, stats):
        return block.base


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (len, ["is neither a function with `@merge_method` nor a subclass of `mergekit.methods.Method`"]),
        (
            Bare,
            [
                "does not define `merge`",
                "does not declare `title: ClassVar[str]`",
                "does not declare `reference: ClassVar[str]`",
                "does not declare `needs: ClassVar[Needs]`",
                "is not a dataclass with `@dataclass(frozen=True, kw_only=True)`",
            ],
        ),
        (Undecorated, ["is not a dataclass with `@dataclass(frozen=True, kw_only=True)`"]),
    ],
)
def test_what_makes_a_class_no_method(found, expected):
    assert list(flaws(found)) == expected


def test_defaults_are_of_their_kind_and_within_their_bounds():
    def wrong(base, models, *, a: float = "1", b: bool = 1, c: int = True, d: Annotated[int, Bounds(high=3)] = 4): ...

    assert list(flaws(made(wrong))) == [
        "declares `a` with the default '1', which is no float",
        "declares `b` with the default 1, which is no bool",
        "declares `c` with the default True, which is no int",
        "declares `d` with the default 4, out of its bounds: at most 3",
    ]
