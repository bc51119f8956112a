"""The corners of single methods: what divides by 0, has no direction, or ties."""

import math

import numpy as np
import pytest
from driver import PATHS, run_method
from hypothesis import given, settings
from hypothesis import strategies as st
from papers import PAPERS

from mergekit.kernels import GRAIN
from mergekit.methods import Block, Target
from mergekit.methods.linear import Linear
from mergekit.methods.passthrough import Passthrough
from mergekit.methods.slerp import Slerp
from mergekit.methods.task_arithmetic import TaskArithmetic
from mergekit.methods.ties import Ties

every_path = pytest.mark.parametrize("path", PATHS)


def floats(*values):
    return np.array(values, np.float32)


def random_row(seed, size=5000, scale=0.05):
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def merged(method, base, *models, path="fused"):
    return run_method(method, base, models, "F32", path=path)


def ties_of(*models, base=None, path="fused", **parameters):
    """TIES, by default over a base of zeros and with everything kept."""
    count = len(models)
    given = {
        "weight": (1.0,) * count,
        "density": (1.0,) * count,
        "normalize": True,
        "lambda_": 1.0,
        "rescale": False,
        "rescale_norm": "l1",
        "consensus_method": "sum",
        **parameters,
    }
    return merged(Ties(**given), np.zeros_like(models[0]) if base is None else base, *models, path=path)


def task_of(base, *models, path="fused", normalize=False, lambda_=1.0, weight=None):
    weight = weight or (1.0,) * len(models)
    return merged(TaskArithmetic(weight=weight, normalize=normalize, lambda_=lambda_), base, *models, path=path)


# SLERP


@every_path
@pytest.mark.parametrize("t", [-0.5, 0.0, 0.3, 0.5, 1.0, 1.7])
def test_slerp_of_orthogonal_vectors_is_on_the_circle(t, path):
    found = merged(Slerp(t=t), floats(1, 0), floats(0, 1), path=path)
    np.testing.assert_allclose(found, [math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)], atol=1e-7)


@every_path
@pytest.mark.parametrize(("t", "factor"), [(0.0, 1), (0.5, math.sqrt(0.5)), (1.0, 0)])
def test_slerp_with_a_zero_vector_takes_the_angle_for_a_right_one(t, factor, path):
    row = random_row(1)
    found = merged(Slerp(t=t), row, np.zeros_like(row), path=path)
    np.testing.assert_allclose(found, factor * row.astype(np.float64), atol=1e-8)
    found = merged(Slerp(t=1 - t), np.zeros_like(row), row, path=path)
    np.testing.assert_allclose(found, factor * row.astype(np.float64), atol=1e-8)


@every_path
def test_slerp_of_two_zero_vectors_is_zero(path):
    zeros = np.zeros(10, np.float32)
    np.testing.assert_array_equal(merged(Slerp(t=0.3), zeros, zeros, path=path), zeros)


@pytest.mark.parametrize(("norm", "coefficient"), [(1e-8, math.sqrt(0.5)), (2e-8, 0.5)])
def test_slerp_sees_no_direction_in_vectors_of_next_to_no_length(norm, coefficient):
    dots = np.full((2, 2), norm**2)
    assert Slerp(t=0.5).coefficients({"dots": dots}) == pytest.approx((coefficient, coefficient))


@every_path
@pytest.mark.parametrize("factor", [2.0, 0.5, -1.0, -3.0])
@pytest.mark.parametrize("t", [-1.0, 0.25, 0.5, 2.0])
def test_slerp_of_colinear_and_opposite_vectors_is_a_straight_line(t, factor, path):
    row = random_row(2)
    found = merged(Slerp(t=t), row, (factor * row).astype(np.float32), path=path)
    np.testing.assert_allclose(found, ((1 - t) + t * factor) * row.astype(np.float64), atol=1e-7)


@pytest.mark.parametrize(("cosine", "straight"), [(0.9994, False), (0.9996, True), (-0.9994, False), (-0.9996, True)])
def test_slerp_becomes_a_straight_line_beyond_its_threshold(cosine, straight):
    dots = np.array([[1, cosine], [cosine, 1]])
    coefficients = Slerp(t=0.25).coefficients({"dots": dots})
    assert (coefficients == (0.75, 0.25)) is straight
    if not straight:
        angle = math.acos(cosine)
        expected = (math.sin(0.75 * angle) / math.sin(angle), math.sin(0.25 * angle) / math.sin(angle))
        assert coefficients == pytest.approx(expected, rel=1e-12)


def test_slerp_of_norms_that_float32_cannot_square():
    row, other = random_row(3, scale=1e25), random_row(4, scale=1e25)
    expected = PAPERS["slerp"](row.astype(np.float64), [other.astype(np.float64)], {"t": 0.5})
    np.testing.assert_allclose(merged(Slerp(t=0.5), row, other), expected, rtol=1e-5, atol=1e20)


@every_path
@pytest.mark.parametrize(("t", "which"), [(0.0, 0), (1.0, 1)])
def test_slerp_ends_at_its_ends(t, which, path):
    rows = random_row(5), random_row(6)
    np.testing.assert_array_equal(merged(Slerp(t=t), *rows, path=path), rows[which])


# Linear


def test_linear_cannot_normalize_weights_that_add_up_to_zero():
    assert len(list(Linear(weight=(1.0, -1.0), normalize=True).mistakes())) == 1
    assert not list(Linear(weight=(1.0, -1.0), normalize=False).mistakes())
    assert not list(Linear(weight=(0.5, -0.2), normalize=True).mistakes())


def test_linear_notices_weights_that_add_up_to_zero_but_for_rounding():
    assert 0.1 + 0.2 - 0.3 != 0
    assert list(Linear(weight=(0.1, 0.2, -0.3), normalize=True).mistakes())


@every_path
def test_linear_without_normalizing_adds_up(path):
    rows = random_row(1), random_row(2)
    found = merged(Linear(weight=(1.0, -1.0), normalize=False), None, *rows, path=path)
    np.testing.assert_allclose(found, rows[0] - rows[1], atol=1e-8)


def test_linear_of_one_model_is_that_model():
    row = random_row(1)
    np.testing.assert_array_equal(merged(Linear(weight=(0.3,), normalize=True), None, row), row)


# Passthrough


@every_path
@pytest.mark.parametrize("scale", [0.0, -1.0, 1.0, 2.5])
def test_passthrough_scales(scale, path):
    row = random_row(1)
    np.testing.assert_array_equal(merged(Passthrough(scale=(scale,)), None, row, path=path), np.float32(scale) * row)


@pytest.mark.parametrize(("scale", "copied"), [(1.0, 0), (1, 0), (0.5, None), (-1.0, None)])
def test_passthrough_copies_only_without_a_factor(scale, copied):
    assert Passthrough(scale=(scale,)).untouched() == copied


# Task arithmetic


@every_path
@pytest.mark.parametrize("weight", [(1.0, -1.0), (0.1, 0.2, -0.3), (1e-9, 0.0)])
def test_task_arithmetic_does_not_divide_by_a_sum_of_zero(weight, path):
    base, *models = (random_row(seed) for seed in range(len(weight) + 1))
    plain = task_of(base, *models, weight=weight, path=path)
    np.testing.assert_array_equal(task_of(base, *models, weight=weight, normalize=True, path=path), plain)


@every_path
def test_task_arithmetic_divides_by_negative_sums(path):
    base, one, two = (random_row(seed) for seed in range(3))
    found = task_of(base, one, two, weight=(-1.0, -3.0), normalize=True, lambda_=2.0, path=path)
    np.testing.assert_allclose(found, base + 2 * (0.25 * (one - base) + 0.75 * (two - base)), atol=1e-6)


@every_path
def test_task_arithmetic_without_weight_is_the_base(path):
    base, model = random_row(0), random_row(1)
    np.testing.assert_array_equal(task_of(base, model, weight=(0.0,), path=path), base)


# TIES


@every_path
def test_a_vote_that_ties_at_zero_counts_as_plus(path):
    found = ties_of(floats(2, -2, 0), floats(-2, 2, 0), path=path)
    np.testing.assert_array_equal(found, [2, 2, 0])


@every_path
@settings(max_examples=30, deadline=None)
@given(weight=st.floats(0.01, 3), seed=st.integers(0, 10**6))
def test_opposite_deltas_of_equal_weight_tie_exactly(path, weight, seed):
    delta = random_row(seed, 3000)
    found = ties_of(delta, -delta, weight=(weight, weight), path=path)
    np.testing.assert_allclose(found, np.abs(delta), rtol=1e-6)


@every_path
def test_negative_weights_vote_the_other_way_and_divide_back(path):
    one, two = floats(1, 1, -1), floats(3, -3, 3)
    found = ties_of(one, two, weight=(-1.0, 0.5), path=path)
    # Votes: (-1, -1, 1) and (1.5, -1.5, 1.5).
    np.testing.assert_allclose(found, [1.5 / 0.5, -2.5 / -0.5, 2.5 / -0.5], rtol=1e-6)


@every_path
@pytest.mark.parametrize("weight", [(1.0, -1.0), (0.5, -0.5)])
def test_agreeing_weights_that_add_up_to_zero_do_not_divide(weight, path):
    found = ties_of(floats(1, 2), floats(-1, -2), weight=weight, path=path)
    np.testing.assert_allclose(found, 2 * weight[0] * floats(1, 2))


@every_path
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_a_density_of_zero_gives_the_base(normalize, rescale, path):
    base, one, two = (random_row(seed) for seed in range(3))
    found = ties_of(one, two, base=base, density=(0.0, 0.0), normalize=normalize, rescale=rescale, path=path)
    np.testing.assert_array_equal(found, base)


@every_path
def test_a_density_of_one_keeps_the_model(path):
    base, one = random_row(0), random_row(1)
    np.testing.assert_allclose(ties_of(one, base=base, path=path), one, atol=1e-7)


@every_path
def test_a_density_of_zero_takes_a_model_out_of_the_vote(path):
    one, two = floats(1, -1), floats(-9, 9)
    np.testing.assert_array_equal(ties_of(one, two, density=(1.0, 0.0), path=path), one)


@every_path
def test_of_equal_magnitudes_those_of_lowest_index_are_kept(path):
    size = 3 * GRAIN + 5
    delta = np.where(np.arange(size) % 2, 0.5, -0.5).astype(np.float32)
    for kept in (1, GRAIN - 1, GRAIN, GRAIN + 1, size - 1):
        found = ties_of(delta, density=((kept + 0.5) / size,), path=path)
        np.testing.assert_array_equal(found, np.where(np.arange(size) < kept, delta, 0))


@every_path
def test_rescaling_restores_the_sum_of_magnitudes(path):
    delta = random_row(1, 3 * GRAIN)
    found = ties_of(delta, density=(0.2,), rescale=True, path=path)
    assert np.abs(found).sum(dtype=np.float64) == pytest.approx(np.abs(delta).sum(dtype=np.float64), rel=1e-6)
    assert (found != 0).sum() == int(0.2 * delta.size)


@every_path
def test_deltas_of_next_to_no_mass_are_not_rescaled(path):
    delta = floats(1e-9, -2e-9, 3e-9)
    np.testing.assert_array_equal(ties_of(delta, density=(0.4,), rescale=True, path=path), [0, 0, delta[2]])


@every_path
def test_models_equal_to_the_base_have_no_vote(path):
    base, one = random_row(0), random_row(1)
    found = ties_of(base, one, base=base, path=path)
    np.testing.assert_allclose(found, one, atol=1e-7)


@every_path
@pytest.mark.parametrize("count", [7, 8, 9, 10, 13])
def test_many_models(count, path):
    random = np.random.default_rng(count)
    base, *models = (np.rint(random_row(seed) * 2**20).astype(np.float32) / 2**20 for seed in range(count + 1))
    weight, density = tuple(random.uniform(-0.5, 1, count).tolist()), tuple(random.uniform(0.1, 1, count).tolist())
    found = ties_of(*models, base=base, weight=weight, density=density, normalize=False, path=path)
    parameters = {"weight": weight, "density": density, "normalize": False, "rescale": False, "lambda": 1.0}
    wide = [model.astype(np.float64) for model in models]
    expected = PAPERS["ties"](base.astype(np.float64), wide, parameters)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# Blocks


def test_a_block_without_a_base_has_none():
    from mergekit.kernels import arrays

    block = Block(np.zeros((2, 3), np.float32), False, 0, arrays, Target("tensor", (3,)))
    assert block.models.shape == (2, 3)
    with pytest.raises(ValueError, match="no base"):
        _ = block.base
