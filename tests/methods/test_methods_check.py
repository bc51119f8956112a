"""The battery for authors: every built-in method passes it, and what breaks a law does not."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import pytest

from mergekit.kernels import GRAIN
from mergekit.methods import METHODS, Method, Needs, PerModel, Reduction, Search, merge_method, parameter, row_grain
from mergekit.testing import LawError, check_method

ORDER_MATTERS = frozenset({"dare_linear", "dare_ties", "della", "della_linear"})
"""Methods whose noise belongs to a model by its place."""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_laws(name):
    check_method(METHODS[name], order_matters=name in ORDER_MATTERS)


def broken(method, **settings):
    """What the battery finds, one text for each law."""
    with pytest.raises(LawError) as caught:
        check_method(method, **settings)
    assert f"breaks {len(caught.value.failures)} of the laws" in str(caught.value)
    return caught.value.failures


def made(function, **settings):
    function.__doc__ = "Do something wrong."
    return merge_method(title="Wrong", **settings)(function)


def mean(base, models):
    return base + (models - base).mean(0)


def test_a_sound_function_passes():
    check_method(made(mean))
    check_method(made(lambda models: models.mean(0), base="ignored", least=2))
    check_method(made(lambda base, models: models.mean(0), base="optional", arrays="torch"))
    check_method(made(mean, whole=True))


def test_blocks_must_not_show():
    (found,) = broken(made(lambda base, models: mean(base, models) - models.mean() + base.mean()), keeps_copies=False)
    assert found.startswith("The same bytes come out whatever the size of the blocks and the number of workers: ")
    check_method(made(lambda base, models: mean(base, models) - models.mean() + base.mean(), whole=True))


def test_the_order_must_not_matter_unless_it_is_said():
    first = made(lambda base, models: models[0])
    (found,) = broken(first)
    assert found.startswith("The order of the models is of no account")
    assert found.endswith(" models)")
    check_method(first, order_matters=True)


def test_copies_must_be_kept_unless_it_is_said():
    double = made(lambda base, models: 2 * mean(base, models))
    (found,) = broken(double)
    assert found.startswith("With the defaults, copies of one model give that model")
    check_method(double, keeps_copies=False)


def test_results_must_be_finite():
    def divides(base, models):
        with np.errstate(all="ignore"):
            return mean(base, models) + 0 / (models[0] - base)

    found = broken(made(divides))
    assert found[0].startswith("The result is float32, finite, and of the shape of one model: ")
    assert "entries are infinite or not a number" in found[0]


@pytest.mark.parametrize("keeps_copies", [True, False])
def test_equal_models_must_give_numbers(keeps_copies):
    """As of any method that divides by the length of a task vector, which is 0 for a tensor that nobody has changed."""

    def lengthened(base, models):
        deltas = models - base
        with np.errstate(all="ignore"):
            return base + (deltas / np.abs(deltas).max()).mean(0)

    found = broken(made(lengthened, whole=True), keeps_copies=keeps_copies)
    assert found[0].startswith("The result is float32, finite, and of the shape of one model: 30800 of 30800 entries")
    assert "not a number, if all models and the base are equal (with" in found[0]


def test_a_kernel_that_gives_no_numbers_does_not_agree():
    def fuse(self, block, stats, out):
        out[:] = np.nan

    names = [each.partition(":")[0] for each in broken(heir(fuse=fuse))]
    assert "`fuse`, and `merge` on NumPy arrays and on torch tensors, agree" in names
    assert "With the defaults, copies of one model give that model (or else `keeps_copies=False`)" in names


def test_results_must_have_the_shape_of_a_model():
    found = broken(made(lambda base, models: models[0, :1]))
    assert "returned float32 of shape (1,)" in found[0]


def test_the_same_must_come_out_every_time():
    draw = np.random.default_rng()
    found = broken(made(lambda base, models: mean(base, models) + draw.normal(0, 1e-3, base.size)))
    assert any("a second run gave other bytes" in each for each in found)


def test_functions_that_need_a_long_tensor_fail():
    (found,) = broken(made(lambda base, models: mean(base, models) + 0 * base[4]))
    assert found.startswith("Tensors of any shape are merged: ")
    assert "IndexError" in found


def test_parameters_must_be_described():
    def silent(base, models, *, t: float = 0.5): ...

    found = broken(merge_method(title="Silent", reference="example.org")(silent))
    assert found[:3] == (
        "It has a docstring: there is none",
        "Its docstring describes the parameters: `t` not, after `Parameters:`",
        "Its reference is a link: 'example.org' does not begin with https://",
    )


def test_what_is_no_method_is_said_at_once():
    assert broken(len) == ("it is neither a function with `@merge_method` nor a subclass of `mergekit.methods.Method`",)


def scaled(base, models, *, factor: float, kind: str, weight: PerModel = 1.0):
    if kind != "plain":
        raise ValueError(kind)
    return base + factor * (models - base).mean(0)


def test_values_can_be_given():
    scaled.__doc__ = "Scale.\n\nParameters:\n    factor, kind, weight: of the whole."
    method = merge_method(title="Scaled")(scaled)
    assert "give `values` for the text `kind`" in broken(method)[0]
    check_method(method, values={"kind": "plain", "weight": 2.0})
    assert "ValueError: odd" in broken(method, values={"kind": "odd"})[0]


@dataclass(frozen=True, kw_only=True)
class Wrong(Method):
    """Go part of the way.

    Parameters:
        t: how far.
    """

    name: ClassVar[str] = "wrong"
    title: ClassVar[str] = "Wrong"
    reference: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs(base="required")

    t: float = parameter(0.5, low=0, high=1, doc="how far")

    def merge(self, block, stats):
        return block.base + self.t * sum(block.deltas) / len(block.models)


def heir(**members):
    return dataclass(frozen=True, kw_only=True)(type("Heir", (Wrong,), {**members, "__doc__": Wrong.__doc__}))


def test_a_sound_class_passes():
    check_method(Wrong)


def test_results_must_stay_in_float32():
    (found, *_) = broken(heir(merge=lambda self, block, stats: Wrong.merge(self, block, stats) * np.float64(1)))
    assert "it returned float64 of shape (30800,), and not float32 of shape (30800,)" in found


def test_the_operands_must_stay_as_they_are():
    def merge(self, block, stats):
        merged = Wrong.merge(self, block, stats)
        block.rows[0] = 0
        return merged

    assert any("it changed the operands" in each for each in broken(heir(merge=merge)))


def test_a_kernel_must_do_what_merge_does():
    def fuse(self, block, stats, out):
        Wrong.fuse(self, block, stats, out)
        out *= 1.01

    found = broken(heir(fuse=fuse), keeps_copies=False)
    assert [each.partition(":")[0] for each in found] == [
        "`fuse`, and `merge` on NumPy arrays and on torch tensors, agree"
    ]


def test_a_kernel_must_write_every_entry():
    def fuse(self, block, stats, out):
        out[:-1] = block.base[:-1]

    assert "1 of 30800 entries are infinite or not a number" in broken(heir(fuse=fuse))[0]


@final
class Endless(Search):
    def scratch(self):
        return None

    def visit(self, block, scratch):
        pass

    def close(self, scratches):
        pass

    def result(self):
        raise AssertionError("it is never done")


@final
class Never(Reduction):
    name = "never"

    def begin(self, target, sample, stats):
        return Endless()


def test_reductions_must_come_to_an_end():
    found = broken(heir(reductions=lambda self: (Never(),)))
    assert "RuntimeError: the reduction `never` does not end" in found[0]


def test_parameters_that_are_never_valid():
    found = broken(heir(mistakes=lambda self: iter(["the moon is wrong"])))
    assert found == ("It has valid parameters: none in a hundred tries (the moon is wrong); give `values`",)


def test_grains_of_a_class_are_kept():
    """A method that looks at whole rows passes only if it says so."""

    def merge(self, block, stats):
        width = min(block.target.width, block.rows.shape[1]) or 1
        rows = block.rows.reshape(len(block.rows), -1, width) if block.rows.shape[1] % width == 0 else None
        if rows is None:
            return block.base
        return (rows[0] + (rows[1:] - rows[0]).mean(0) * (1 + 0 * rows[0].mean(-1, keepdims=True))).reshape(-1)

    check_method(heir(merge=merge, grain=lambda self, shape: row_grain(shape)))
    assert any("whatever the size of the blocks" in each for each in broken(heir(merge=merge)))
    assert row_grain((28, 1100)) < GRAIN
