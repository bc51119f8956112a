"""Laws that every registered method obeys, whatever its formula."""

import dataclasses
import itertools

import numpy as np
import pytest
from driver import PATHS, TWINS, run_method
from kernel_formats import FORMATS, decode, encode, ulps
from method_samples import SEEDS, sample, tensors, wide
from papers import PAPERS
from papers_delta_sum import RANDOM

from mergekit.kernels import GRAIN
from mergekit.methods import METHODS

SIZE = 7 * GRAIN + 1234
SHAPES = ((SIZE,), (37, 811), (5, 7, 811))
HALVES = ("BF16", "F16")

ORDER_MATTERS: frozenset[str] = RANDOM
"""Methods whose formula treats one model unlike another; all others must not depend on the order."""

every_method = pytest.mark.parametrize("name", METHODS)
every_sample = pytest.mark.parametrize(("name", "seed"), list(itertools.product(METHODS, SEEDS)))
few_samples = pytest.mark.parametrize(("name", "seed"), list(itertools.product(METHODS, (1, 2))))


def shape_of(seed):
    """One, two or three dimensions, of several grains each."""
    return SHAPES[seed % len(SHAPES)]


def expected(found, base, models):
    """The paper's result on the same inputs, float64."""
    return PAPERS[found.name](*wide(base, models), found.parameters)


def assert_near(found, wanted, relative):
    """Float values agree to a share of the largest entry."""
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max(initial=0) <= relative * np.abs(wanted).max(initial=0)


def assert_rounded_once(raw, exact, name):
    """At most one step from the rounded exact result, hardly ever a step at all.

    Entries in which large terms cancel have steps finer than float32 arithmetic on the terms resolves.
    """
    steps = ulps(raw, encode(exact, name))
    unresolved = np.abs(decode(raw) - exact) <= 1e-6 * np.abs(exact).max()
    assert ((steps <= 1) | unresolved).all(), steps.max()
    assert (steps == 0).mean() >= 0.999


@every_sample
def test_agrees_with_the_paper_in_float32(name, seed):
    found = sample(name, seed)
    base, models = tensors(seed, found, shape_of(seed), "F32")
    assert_near(run_method(found.method, base, models, "F32", 2), expected(found, base, models), 1e-5)


@pytest.mark.parametrize("raw_format", HALVES)
@every_sample
def test_agrees_with_the_paper_on_half_precision_before_rounding(name, seed, raw_format):
    found = sample(name, seed)
    base, models = tensors(seed, found, shape_of(seed), raw_format)
    merged = run_method(found.method, base, models, raw_format, 2, out_format="F32")
    assert_near(merged, expected(found, base, models), 1e-5)


@pytest.mark.parametrize("raw_format", HALVES)
@every_sample
def test_agrees_with_the_paper_in_half_precision_after_rounding(name, seed, raw_format):
    found = sample(name, seed)
    base, models = tensors(seed, found, shape_of(seed), raw_format)
    merged = run_method(found.method, base, models, raw_format, 2)
    assert_rounded_once(merged, expected(found, base, models), raw_format)


@pytest.mark.parametrize("out_format", HALVES)
@few_samples
def test_float32_is_rounded_once_into_half_precision(name, seed, out_format):
    found = sample(name, seed)
    base, models = tensors(seed, found, shape_of(seed), "F32")
    merged = run_method(found.method, base, models, "F32", 2, out_format=out_format)
    assert_rounded_once(merged, expected(found, base, models), out_format)


@pytest.mark.parametrize("raw_format", FORMATS)
@every_sample
def test_stripes_and_workers_change_no_byte(name, seed, raw_format):
    found = sample(name, seed)
    base, models = tensors(seed, found, shape_of(seed), raw_format)
    whole = run_method(found.method, base, models, raw_format)
    for stripe, workers in [(1, 1), (1, 3), (3, 1), (3, 2), (7, 1), (7, 2)]:
        merged = run_method(found.method, base, models, raw_format, stripe, workers=workers)
        assert merged.tobytes() == whole.tobytes(), (stripe, workers)


@pytest.mark.parametrize("path", TWINS)
@few_samples
def test_stripes_change_nothing_in_the_twins(name, seed, path):
    found = sample(name, seed)
    base, models = tensors(seed, found, shape_of(seed), "F32")
    whole = run_method(found.method, base, models, "F32", None, path)
    for stripe in (1, 3, 7):
        np.testing.assert_array_equal(run_method(found.method, base, models, "F32", stripe, path), whole)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "fused"])
@pytest.mark.parametrize("raw_format", FORMATS)
@every_sample
def test_the_kernel_equals_its_twins(name, seed, raw_format, path):
    found = sample(name, seed)
    base, models = tensors(seed, found, shape_of(seed), raw_format)
    kernel = run_method(found.method, base, models, raw_format, 3, out_format="F32")
    twin = run_method(found.method, base, models, raw_format, 3, path, out_format="F32")
    assert_near(twin, kernel, 1e-6)


def neutral(name):
    """Defaults wherever there are some."""
    return sample(name, 0)


def copies_are_kept(found):
    """Whether the formula gives one model back when all operands are copies of it, tried on a small vector."""
    probe = np.array([1.0, -0.5, 0.25])
    merged = PAPERS[found.name](probe if found.based else None, [probe] * found.models, found.parameters)
    return np.allclose(merged, probe, rtol=1e-12)


def faithful_samples(name):
    """Samples of a method under which copies are kept, a neutral one at least: normalized, or with factors of 1."""
    found = [each for each in (sample(name, seed) for seed in range(20)) if copies_are_kept(each)]
    assert found, f"no parameters under which {name} keeps copies of one model"
    return found[:6]


@every_method
def test_methods_that_start_from_a_base_keep_copies_of_it_under_all_parameters(name):
    if METHODS[name].needs.base != "required":
        return
    for seed in range(8):
        found = sample(name, seed)
        base, _ = tensors(seed, found, SIZE, "F32")
        merged = run_method(found.method, base, [base] * found.models, "F32", 3)
        assert ulps(merged, base).max() <= 1, found


@every_method
def test_a_broken_input_breaks_the_output(name):
    """Nothing that is infinite or not a number vanishes because it is dropped, trimmed or outvoted."""
    for seed in range(1, 6):
        found = sample(name, seed)
        base, models = tensors(seed, found, SIZE, "F32")
        untouched = run_method(found.method, base, models, "F32", 3)
        for value in (np.nan, np.inf, -np.inf):
            broken = [model.copy() for model in models]
            broken[0][[5, GRAIN + 7]] = value
            merged = run_method(found.method, base, broken, "F32", 3)
            assert takes_nothing_of(found, 0) or not np.isfinite(merged[[5, GRAIN + 7]]).any(), (found, value)
        assert np.isfinite(untouched).all()


def takes_nothing_of(found, model):
    """Whether the parameters leave a model out altogether."""
    return any(each.name == "density" and found.parameters["density"][model] == 0 for each in found.method.parameters())


@pytest.mark.parametrize("raw_format", FORMATS)
@every_method
def test_copies_of_one_model_give_that_model(name, raw_format):
    for found in faithful_samples(name):
        _, (model, *_) = tensors(3, found, SIZE, raw_format)
        merged = run_method(found.method, model if found.based else None, [model] * found.models, raw_format, 3)
        assert ulps(merged, model).max() <= (1 if raw_format == "F32" else 0), found


@every_sample
def test_the_order_of_models_is_of_no_account(name, seed):
    found = sample(name, seed)
    base, models = tensors(seed, found, shape_of(seed), "F32")
    merged = run_method(found.method, base, models, "F32", 3)
    same = True
    for order in itertools.permutations(range(found.models)):
        other = found.permuted(order)
        permuted = run_method(other.method, base, [models[i] for i in order], "F32", 3)
        same &= np.abs(permuted - merged).max() <= 1e-6 * np.abs(merged).max()
    assert same or name in ORDER_MATTERS


def test_declarations_of_order_dependence_name_methods():
    assert set(METHODS) >= ORDER_MATTERS


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3), (2, 1, 3)])
@few_samples
def test_any_shape(name, seed, shape, path):
    found = sample(name, seed)
    base, models = tensors(seed, found, shape, "F32")
    merged = run_method(found.method, base, models, "F32", 1, path)
    assert_near(merged, expected(found, base, models), 1e-5)


@every_sample
def test_a_result_said_to_be_a_copy_is_one(name, seed):
    for found in (sample(name, seed), neutral(name)):
        index = found.method.untouched()
        if index is not None:
            base, models = tensors(seed, found, shape_of(seed), "BF16")
            np.testing.assert_array_equal(run_method(found.method, base, models, "BF16", 3), models[index])


def test_passthrough_by_default_is_a_copy():
    assert neutral("passthrough").method.untouched() == 0


@every_method
def test_fields_are_frozen(name):
    method = neutral(name).method
    for field in dataclasses.fields(method):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, None)


@every_method
def test_parameters_are_declared_in_full(name):
    names = [declared.name for declared in METHODS[name].parameters()]
    assert len(set(names)) == len(names) == len(dataclasses.fields(METHODS[name]))
    kinds = {"float": (int, float), "int": int, "bool": bool, "str": str}
    for declared in METHODS[name].parameters():
        assert declared.doc
        assert declared.name.isidentifier()
        assert declared.kind in kinds
        if declared.required:
            assert declared.default is None
        else:
            assert isinstance(declared.default, kinds[declared.kind])
            assert declared.kind == "bool" or not isinstance(declared.default, bool)
            assert declared.kind not in ("float", "int") or declared.fits(declared.default)


@every_method
def test_methods_say_what_they_are(name):
    method = METHODS[name]
    assert method.name == name
    assert method.title
    assert method.reference == "" or method.reference.startswith("https://")
    assert "Parameters:" in method.__doc__
    assert method.needs.least >= 1
    assert method.needs.most is None or method.needs.most >= method.needs.least
    assert str(method.needs).startswith(("at least", str(method.needs.least)))


@every_method
def test_defaults_are_no_mistake(name):
    assert not list(neutral(name).method.mistakes())


def test_the_registry_is_complete():
    assert set(PAPERS) == set(METHODS)
