"""The corners of methods on dot products: no direction, opposite directions, angles near 0 and π; rows and columns."""

import itertools
import math

import numpy as np
import pytest
from driver import PATHS, TWINS, run_method
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, decode, encode, weights_like
from papers import PAPERS

from mergekit.methods.columns import ColumnWeights, column_grain
from mergekit.methods.karcher import Karcher
from mergekit.methods.model_stock import ModelStock
from mergekit.methods.multislerp import MultiSlerp
from mergekit.methods.nuslerp import NuSlerp
from mergekit.methods.slerp import Slerp
from mergekit.methods.vectors import TensorWeights, cosines, norm

every_path = pytest.mark.parametrize("path", PATHS)


def floats(*values):
    return np.array(values, np.float32)


def random_row(seed, size=5000, scale=0.05):
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def merged(method, base, *models, path="fused", **arguments):
    return run_method(method, base, models, "F32", path=path, **arguments)


def nuslerp(*weight, flatten=True, row_wise=False):
    return NuSlerp(weight=weight or (1.0, 1.0), nuslerp_flatten=flatten, nuslerp_row_wise=row_wise)


def multislerp(*weight, normalize=True, eps=1e-8):
    return MultiSlerp(weight=weight, normalize_weights=normalize, eps=eps)


def karcher(max_iter=10, tol=1e-5):
    return Karcher(max_iter=max_iter, tol=tol)


def stock(filter_wise=False):
    return ModelStock(filter_wise=filter_wise)


ALL = [nuslerp(0.3, 0.5), multislerp(0.3, 0.5), karcher(), stock(), stock(True)]
ALONG = [nuslerp(0.3, 0.5, flatten=False), nuslerp(0.3, 0.5, flatten=False, row_wise=True), stock(True)]


def based(method, base):
    return None if method.needs.base == "ignored" else base


# All of them


@every_path
@pytest.mark.parametrize("method", ALL + ALONG, ids=repr)
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_input_breaks_the_output_in_silence(method, broken, path):
    base, one, two = (random_row(seed, (5, 40)) for seed in range(3))
    one[2, 3] = broken
    found = merged(method, based(method, base), one, two, path=path)
    assert not np.isfinite(found[2, 3])


@pytest.mark.parametrize("method", ALL + ALONG, ids=repr)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_norms_that_float32_cannot_square(method, scale):
    base, one, two = (scale * random_row(seed, (6, 50)) for seed in range(3))
    if isinstance(method, NuSlerp | MultiSlerp) and scale < 1:
        pytest.skip("the norms up to which their formulas see no direction are absolute")
    usual = merged(method, based(method, base / scale), one / scale, two / scale)
    found = merged(method, based(method, base), one, two)
    np.testing.assert_allclose(found / scale, usual, atol=1e-5 * np.abs(usual).max())


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_float16_norms_do_not_overflow(method):
    base, one, two = (encode(np.clip(random_row(seed, 5000, 2e4), -6e4, 6e4), "F16") for seed in range(3))
    origin = based(method, base)
    found = decode(run_method(method, origin, [one, two], "F16", out_format="F32"))
    assert np.isfinite(found).all()
    wide = [each if each is None else decode(each).astype(np.float64) for each in (origin, one, two)]
    parameters = {each.name: getattr(method, each.field) for each in method.parameters()}
    wanted = PAPERS[method.name](wide[0], wide[1:], parameters)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def turned(angle, seed=1, size=3000):
    """Two vectors of a given angle and norms of 1 and 2, float64."""
    one, other = np.random.default_rng(seed).normal(0, 1, (2, size))
    one /= np.linalg.norm(one)
    other -= (other @ one) * one
    other /= np.linalg.norm(other)
    return one, 2 * (math.cos(angle) * one + math.sin(angle) * other)


NEAR = [1e-8, 1e-6, 1e-4, 1e-2]


@pytest.mark.parametrize("angle", [*NEAR, 1.0, *(math.pi - gap for gap in (1e-2, 1e-4, 1e-5))])
def test_angles_are_told_from_dot_products(angle):
    """The coefficients lead to the vector that the formula of the exact angle leads to."""
    one, two = turned(angle)
    vectors = np.stack([one, two])
    gram = vectors @ vectors.T
    for t in (0.1, 0.5, 0.9):
        wanted = (math.sin((1 - t) * angle) * one + math.sin(t * angle) * two) / math.sin(angle)
        found = nuslerp(1 - t, t).weigh(gram) @ vectors
        assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("angle", [*NEAR, 1.0, 3.0, math.pi - 1e-2, math.pi - 1e-4])
def test_the_mean_of_two_is_in_the_middle_of_their_arc(angle):
    one, two = turned(angle)
    vectors = np.stack([one, two])
    gram = vectors @ vectors.T
    middle = one + two / 2
    middle *= 1.5 / np.linalg.norm(middle)
    for method in (karcher(), multislerp(0.5, 0.5, eps=0.0)):
        assert np.linalg.norm(method.weigh(gram) @ vectors - middle) <= 1e-5 * 1.5


def test_cosines_with_a_vector_of_no_length_are_zero():
    gram = np.array([[4.0, 0, 1], [0, 0, 0], [1, 0, 1]])
    np.testing.assert_array_equal(cosines(gram), [[1, 0, 0.5], [0, 0, 0], [0.5, 0, 1]])
    np.testing.assert_array_equal(cosines(np.stack([gram, gram]), 4.0)[1, 0], [0.25, 0, 1 / 16])


def test_a_norm_that_rounding_leaves_without_a_root_is_zero():
    assert norm(np.array([1.0, -1.0]), np.array([[1.0, 1.0], [1.0, 1 - 1e-16]])) == 0
    assert norm(np.array([1.0, 2.0]), np.eye(2)) == math.sqrt(5)


# NuSLERP


@every_path
@pytest.mark.parametrize("t", [-0.5, 0.0, 0.3, 0.5, 1.0, 1.7])
def test_nuslerp_of_orthogonal_vectors_is_on_the_circle(t, path):
    found = merged(nuslerp(1 - t, t), None, floats(1, 0), floats(0, 1), path=path)
    np.testing.assert_allclose(found, [math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)], atol=1e-7)
    found = merged(nuslerp(1 - t, t), floats(3, 4), floats(4, 4), floats(3, 5), path=path)
    np.testing.assert_allclose(found, [3 + math.cos(t * math.pi / 2), 4 + math.sin(t * math.pi / 2)], atol=1e-6)


def test_nuslerp_without_a_base_is_slerp():
    rows = random_row(1), random_row(2)
    np.testing.assert_allclose(merged(nuslerp(6.0, 2.0), None, *rows), merged(Slerp(t=0.25), *rows), rtol=1e-6)


@pytest.mark.parametrize("weight", [(1.0, -1.0), (0.0, 0.0), (4e-7, 5e-7)])
def test_nuslerp_of_weights_that_add_up_to_nothing_is_in_the_middle(weight):
    rows = random_row(1), random_row(2)
    np.testing.assert_array_equal(merged(nuslerp(*weight), None, *rows), merged(nuslerp(1.0, 1.0), None, *rows))


@every_path
@pytest.mark.parametrize("factor", [2.0, 0.5, -1.0, -3.0])
@pytest.mark.parametrize("t", [-1.0, 0.25, 0.5, 2.0])
@pytest.mark.parametrize("flatten", [True, False])
def test_nuslerp_of_colinear_and_opposite_vectors_is_a_straight_line(t, factor, flatten, path):
    row = random_row(2)
    found = merged(nuslerp(1 - t, t, flatten=flatten), None, row, (factor * row).astype(np.float32), path=path)
    np.testing.assert_allclose(found, ((1 - t) + t * factor) * row.astype(np.float64), atol=1e-7)


@every_path
def test_nuslerp_with_a_zero_vector_takes_the_angle_for_a_right_one(path):
    base, row = random_row(0), random_row(1)
    found = merged(nuslerp(1.0, 1.0), base, base, base + row, path=path)
    np.testing.assert_allclose(found, base + math.sqrt(0.5) * row, atol=1e-7)
    zeros = np.zeros_like(row)
    np.testing.assert_array_equal(merged(nuslerp(0.3, 0.7), None, zeros, zeros, path=path), zeros)


@pytest.mark.parametrize(("length", "coefficient"), [(1e-7, 0.5), (1e-8, math.sin(math.acos(0.01) / 2) / 0.99995)])
def test_nuslerp_takes_short_vectors_for_shorter_ones_at_a_right_angle(length, coefficient):
    gram = np.full((2, 2), length**2)
    assert nuslerp(1.0, 1.0).weigh(gram) == pytest.approx(coefficient, rel=1e-6)


def test_nuslerp_flattens_before_it_looks_at_rows():
    rows = random_row(1, (7, 30)), random_row(2, (7, 30))
    found = merged(nuslerp(0.3, 0.5, flatten=True, row_wise=True), None, *rows)
    np.testing.assert_array_equal(found, merged(nuslerp(0.3, 0.5), None, *rows))


# Rows and columns

SHAPES = [(), (1,), (9,), (0,), (3, 0), (0, 3), (1, 9), (9, 1), (7, 30), (4, 3, 5), (2, 1, 3, 2), (3, 900), (900, 3)]


def one_by_one(flat, axis, base, models):
    """A method on each of the vectors along an axis, in a tensor of its own."""
    found = np.empty_like(base)
    others = [index for index in range(base.ndim) if index != axis % base.ndim]
    for place in itertools.product(*(range(base.shape[index]) for index in others)):
        where = tuple(slice(None) if index not in others else place[others.index(index)] for index in range(base.ndim))
        found[where] = merged(flat, base[where].copy(), *(model[where].copy() for model in models))
    return found


@every_path
@pytest.mark.parametrize(
    ("method", "flat", "axis"),
    [(ALONG[0], nuslerp(0.3, 0.5), -1), (ALONG[1], nuslerp(0.3, 0.5), 0), (ALONG[2], stock(), -1)],
    ids=["last", "first", "filters"],
)
@pytest.mark.parametrize("shape", SHAPES[:11], ids=str)
def test_each_vector_is_merged_as_if_alone(method, flat, axis, shape, path):
    base, *models = (random_row(seed, shape) for seed in range(3))
    base, *models = (np.asarray(each, np.float32) for each in (base, *models))
    found = merged(method, base, *models, path=path)
    wanted = one_by_one(flat, axis, *(base, models)) if shape else merged(flat, base, *models)
    np.testing.assert_allclose(found, wanted, atol=2e-6 * max(1, np.abs(wanted).max(initial=0)))


@every_path
@pytest.mark.parametrize("method", ALONG, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("raw_format", ["F32", "BF16"])
def test_vectors_of_any_shape_agree_with_the_paper(method, shape, raw_format, path):
    raw = [encode(0.05 * np.random.default_rng(seed).normal(0, 1, shape), raw_format) for seed in range(3)]
    wide = [decode(each).reshape(shape).astype(np.float64) for each in raw]
    parameters = {each.name: getattr(method, each.field) for each in method.parameters()}
    for origin in [0, None] if method.needs.base == "optional" else [0]:
        base = None if origin is None else raw[0]
        wanted = PAPERS[method.name](None if base is None else wide[0], wide[1:], parameters)
        found = run_method(method, base, raw[1:], raw_format, 1, path, out_format="F32")
        assert found.shape == shape
        assert np.abs(found - wanted).max(initial=0) <= 1e-5 * np.abs(wanted).max(initial=0)


@pytest.mark.parametrize("raw_format", FORMATS)
@pytest.mark.parametrize("method", ALONG, ids=repr)
@pytest.mark.parametrize("shape", [(150, 1500), (11, 20, 1000), (70_000, 1), (4, 70_001)], ids=str)
def test_stripes_and_workers_change_no_byte_of_large_tensors(method, shape, raw_format):
    raw = [weights_like(seed, shape, raw_format) for seed in range(3)]
    whole = run_method(method, raw[0], raw[1:], raw_format)
    for stripe, workers in [(1, 1), (1, 3), (2, 2), (3, 1)]:
        found = run_method(method, raw[0], raw[1:], raw_format, stripe, workers=workers)
        assert found.tobytes() == whole.tobytes(), (stripe, workers)


@pytest.mark.parametrize("path", TWINS)
def test_stripes_change_nothing_in_columns_of_the_twins(path):
    base, *models = (random_row(seed, (150, 1500)) for seed in range(3))
    whole = merged(ALONG[1], base, *models, path=path)
    for stripe, workers in [(1, 2), (2, 1)]:
        np.testing.assert_array_equal(merged(ALONG[1], base, *models, path=path, stripe=stripe, workers=workers), whole)


@settings(max_examples=50, deadline=None)
@given(grains=st.integers(1, 40), edges=st.lists(st.integers(0, 40), max_size=4), seed=st.integers(0, 10**6))
def test_columns_are_summed_alike_and_in_little_memory_however_they_are_shared(grains, edges, seed):
    from driver import Stage

    from mergekit.methods import Target

    shape = (3 * grains, 2)
    target = Target("tensor", shape, 6)
    rows = np.random.default_rng(seed).normal(0, 1, (2, 6 * grains)).astype(np.float32)
    stage = Stage(rows, False, target)

    def total(cuts):
        search = ColumnWeights("sums", lambda gram: gram.reshape(2, 4)).begin(target, list, {})
        scratches = []
        for first, last in itertools.pairwise(cuts):
            scratch = search.scratch()
            for grain in range(first, last):
                search.visit(stage.block(rows[:, 6 * grain : 6 * grain + 6], 6 * grain), scratch)
                assert len(scratch) <= 2 * grains.bit_length()
            scratches.append(scratch)
        search.close(scratches)
        assert search.done
        return search.result()

    cuts = [0, *sorted(min(edge, grains) for edge in edges), grains]
    found = total(cuts)
    assert found.tobytes() == total([0, grains]).tobytes()
    matrices = rows.astype(np.float64).reshape(2, -1, 2)
    np.testing.assert_allclose(found.T.reshape(2, 2, 2), np.einsum("inc,jnc->cij", matrices, matrices), rtol=1e-12)


def test_grains_of_columns_are_whole_lines():
    assert column_grain((100, 7)) % 7 == 0
    assert column_grain((4, 50, 2000)) == 100_000
    assert column_grain(()) == column_grain((10,)) == 1 << 16
    assert column_grain((3, 0)) > 0


def test_lines_are_merged_in_one_pass_and_columns_in_two():
    assert stock(True).reductions() == ALONG[0].reductions() == ()
    assert [type(each) for each in ALONG[1].reductions()] == [ColumnWeights]
    assert [type(each) for each in stock().reductions()] == [TensorWeights]


# Multi-SLERP


@every_path
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_multislerp_of_a_tensor_that_nobody_changed_is_the_base(count, path):
    base = random_row(0)
    found = merged(multislerp(*[1.0] * count), base, *[base] * count, path=path)
    np.testing.assert_array_equal(found, base)


@every_path
def test_multislerp_of_two_opposite_vectors_adds_up(path):
    row = random_row(1)
    found = merged(multislerp(1.0, 3.0), None, row, -row, path=path)
    assert np.abs(found).max() > 0.1  # weights of ¼ and ¾ do not cancel: the direction is that of the greater
    np.testing.assert_allclose(found, -row, atol=1e-7)
    found = merged(multislerp(0.5, 0.5, normalize=False), None, row, -3 * row, path=path)
    np.testing.assert_allclose(found, -row, atol=1e-7)


@every_path
def test_multislerp_of_three_directions_that_cancel_adds_up(path):
    angles = np.array([0, 1, 2]) * 2 * math.pi / 3
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[1], [2], [3]])
    found = merged(multislerp(1.0, 1.0, 1.0), None, *vectors.astype(np.float32), path=path)
    np.testing.assert_allclose(found, vectors.mean(axis=0), atol=1e-6)


@every_path
@pytest.mark.parametrize("base", [None, random_row(7)])
def test_multislerp_of_one_model_is_that_model(base, path):
    row, method = random_row(1), multislerp(0.3)
    assert method.untouched() == 0
    np.testing.assert_allclose(merged(method, base, row, path=path), row, atol=1e-8)


def test_multislerp_of_one_model_counts_its_weight_if_asked_to():
    row, method = random_row(1), multislerp(0.3, normalize=False)
    assert method.untouched() is None
    np.testing.assert_allclose(merged(method, None, row), 0.3 * row.astype(np.float64), rtol=1e-6)


@every_path
def test_multislerp_ignores_the_direction_of_a_model_without_any(path):
    base, row = random_row(0), random_row(1)
    found = merged(multislerp(1.0, 1.0, 2.0), base, base, base + row, base, path=path)
    np.testing.assert_allclose(found, base + row / 4, atol=1e-8)


def test_multislerp_turns_directions_and_averages_norms():
    found = multislerp(1.0, 3.0).weigh(np.diag([4.0, 16.0])) @ np.diag([2.0, 4.0])
    assert np.linalg.norm(found) == pytest.approx(0.25 * 2 + 0.75 * 4)
    assert found[1] / found[0] == pytest.approx(3)


@pytest.mark.parametrize(("eps", "scale"), [(1e-8, 1.0), (1e-3, 1e-3)])
def test_multislerp_takes_short_vectors_for_less_of_a_direction(eps, scale):
    gram = scale**2 * np.diag([1.0, 9.0])
    first, second = multislerp(1.0, 1.0, eps=eps).weigh(gram)
    assert first / second == pytest.approx((3 * scale + eps) / (scale + eps))


def test_multislerp_cannot_normalize_weights_that_add_up_to_zero():
    assert len(list(multislerp(0.1, 0.2, -0.3).mistakes())) == 1
    assert not list(multislerp(1.0, -1.0, normalize=False).mistakes())
    assert not list(multislerp(1.0, -0.5).mistakes())


# Karcher


@every_path
def test_karcher_of_one_model_is_that_model(path):
    row = random_row(1)
    np.testing.assert_allclose(merged(karcher(), None, row, path=path), row, rtol=2e-7)


@every_path
def test_karcher_of_zeros_is_zero(path):
    zeros = np.zeros(10, np.float32)
    np.testing.assert_array_equal(merged(karcher(), None, zeros, zeros, path=path), zeros)


@every_path
def test_a_model_without_direction_shrinks_the_karcher_mean_and_does_not_turn_it(path):
    one, two = random_row(1), random_row(2)
    without = merged(karcher(), None, one, two, path=path)
    found = merged(karcher(), None, one, np.zeros_like(one), two, path=path)
    np.testing.assert_allclose(found, without.astype(np.float64) * 2 / 3, atol=1e-8)


@pytest.mark.parametrize(("length", "turns"), [(0.9e-5, False), (1.1e-5, True)])
def test_a_model_has_no_direction_if_it_is_short_beside_the_longest(length, turns):
    coefficients = karcher().weigh(1e-12 * np.diag([1.0, length**2]))
    assert (coefficients[1] > 0) == turns


@every_path
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_the_karcher_mean_of_opposite_vectors_has_the_direction_of_the_first(factor, path):
    row = random_row(1)
    found = merged(karcher(), None, row, -factor * row, path=path)
    np.testing.assert_allclose(found, (1 + factor) / 2 * row, rtol=1e-6)


def test_small_tensors_keep_their_karcher_mean():
    one, two = random_row(1), random_row(2)
    small = [row * 2.0**-60 for row in (one, two)]
    np.testing.assert_allclose(merged(karcher(), None, *small) * 2.0**60, merged(karcher(), None, one, two), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 6), spread=st.floats(0.01, 0.8), seed=st.integers(0, 10**6))
def test_arcs_to_the_karcher_mean_cancel(count, spread, seed):
    """The condition that defines it, arXiv:2603.04972: the logarithms at the mean add up to 0."""
    random = np.random.default_rng(seed)
    vectors = random.normal(0, 1, 50) + spread * random.normal(0, 1, (count, 50))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = karcher(max_iter=200, tol=1e-9).weigh(vectors @ vectors.T) @ vectors
    mean /= np.linalg.norm(mean)
    angles = np.arccos(units @ mean)
    logarithms = (angles / np.sin(angles))[:, None] * (units - (units @ mean)[:, None] * mean)
    assert np.linalg.norm(logarithms.sum(axis=0)) <= 1e-7 * count


def test_karcher_without_a_step_takes_the_mean_of_the_directions():
    found = karcher(max_iter=0).weigh(np.array([[4.0, 1, 0], [1, 1, 0], [0, 0, 9]]))
    np.testing.assert_allclose(found * [2, 1, 3], found[0] * 2)


def test_karcher_does_not_ask_for_a_base():
    assert Karcher.needs.base == "ignored"


# Model stock


@every_path
@pytest.mark.parametrize("filter_wise", [True, False])
def test_model_stock_of_deltas_at_right_angles_is_the_base(filter_wise, path):
    base = floats(1, 2, 3, 4)
    found = merged(stock(filter_wise), base, base + floats(1, 0, 0, 0), base + floats(0, 2, 0, 0), path=path)
    np.testing.assert_array_equal(found, base)


@every_path
def test_model_stock_of_deltas_that_agree_is_their_average(path):
    base, delta = random_row(0), random_row(1)
    found = merged(stock(), base, base + delta, base + 3 * delta, base + 2 * delta, path=path)
    np.testing.assert_allclose(found, base + 2 * delta, atol=1e-6)


@every_path
@pytest.mark.parametrize("count", [2, 3, 4])
def test_model_stock_of_deltas_that_cancel_is_the_base(count, path):
    """The formula divides by 0 where the mean of the cosines is −1/(N − 1)."""
    corners = (np.eye(count) - 1 / count).astype(np.float32)
    found = merged(stock(), np.zeros(count, np.float32), *corners, path=path)
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize(("cosine", "share"), [(0.5, 2 / 3), (-0.5, -2.0), (-0.9, -18.0), (1.0, 1.0), (0.0, 0.0)])
def test_model_stock_goes_where_the_formula_says(cosine, share):
    gram = np.array([[1, 3 * cosine], [3 * cosine, 9]])
    assert stock().weigh(gram) == pytest.approx(share / 2)


def test_a_model_that_did_not_change_is_at_a_right_angle_to_the_others():
    gram = np.array([[1.0, 0, 1], [0, 0, 0], [1, 0, 1]])
    cosine = 1 / 3
    assert stock().weigh(gram) == pytest.approx(cosine / (1 + 2 * cosine))


@every_path
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-10, 1.0])
def test_model_stock_of_small_deltas_is_as_of_great_ones(scale, path):
    zeros, one, two = np.zeros(5000, np.float32), random_row(1), random_row(1) + random_row(2)
    found = merged(stock(), zeros, scale * one, scale * two, path=path)
    np.testing.assert_allclose(found / scale, merged(stock(), zeros, one, two, path=path), rtol=1e-6)


def test_model_stock_needs_two_models_and_a_base():
    assert str(ModelStock.needs) == "at least 2 models and a base"
