"""Divergence of rows against extended precision, and the entries that follow from it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, RAW, decode, encode

from mergekit.kernels import arrays, fused

WIDE = np.longdouble  # of 64 bits of precision on x86, of float64 elsewhere
UNIT = float(np.finfo(WIDE).eps)
FLOOR = WIDE("1e-8")


def rows_near(seed, shape, name="F32", scale=0.05, distance=0.001):
    """A base and a model near it, raw and flat."""
    random = np.random.default_rng(seed)
    base = random.normal(0, scale, shape)
    near = base + random.normal(0, distance, shape)
    return encode(near.reshape(-1), name), encode(base.reshape(-1), name)


def shares(rows):
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True) + FLOOR


def expected(row, base, width):
    """The definition, and by how much rounding may change it."""
    p, q = (shares(decode(raw).reshape(-1, width).astype(WIDE)) for raw in (row, base))
    return (p * np.log(p / q)).sum(axis=1), 10 * UNIT * width**0.5


def divergence(row, base, width):
    out = np.full(row.size // width, 77.0)
    fused.row_divergence(row, base, width, out)
    return out


def check(row, base, width):
    wanted, rounding = expected(row, base, width)
    error = np.abs(divergence(row, base, width) - wanted.astype(np.float64))
    assert (error <= 1e-12 * np.abs(wanted) + max(rounding, 1e-18)).all(), error.max()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("width", [1, 2, 7, 64, 896, 8191, 8192, 8193, 20000])
def test_divergence_is_that_of_the_definition(name, width):
    check(*rows_near(width, (3, width), name), width)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    width=st.integers(1, 300),
    scale=st.sampled_from([1e-3, 0.05, 1, 10, 100, 1e5]),
    distance=st.sampled_from([1e-7, 1e-3, 1, 30, 1e4]),
)
def test_divergence_of_rows_however_steep_and_far_apart(seed, width, scale, distance):
    check(*rows_near(seed, (4, width), "F32", scale, distance), width)


def test_divergence_of_a_very_long_row():
    check(*rows_near(1, (1, 150_001), "BF16"), 150_001)


def test_divergence_of_rows_that_differ_by_little_keeps_its_digits():
    row, base = rows_near(3, (20, 1000), scale=1, distance=1e-6)
    p, q = (shares(decode(raw).reshape(-1, 1000).astype(WIDE)) for raw in (row, base))
    apart = (q - p) / p  # p ln(p/q) − p + q = p (t − ln(1 + t)), here by its series
    wanted = (p * (apart**2 / 2 - apart**3 / 3 + apart**4 / 4)).sum(axis=1).astype(np.float64)
    assert wanted.max() < 1e-11
    np.testing.assert_allclose(divergence(row, base, 1000), wanted, rtol=1e-8)


@pytest.mark.parametrize("name", FORMATS)
def test_equal_rows_do_not_diverge(name):
    row, _ = rows_near(1, (5, 300), name, scale=3)
    np.testing.assert_array_equal(divergence(row, row.copy(), 300), np.zeros(5))


def test_a_row_of_one_entry_does_not_diverge():
    row, base = rows_near(1, (50, 1), distance=1)
    np.testing.assert_array_equal(divergence(row, base, 1), np.zeros(50))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 500), distance=st.sampled_from([1e-7, 1e-5, 1e-2, 1]))
def test_divergence_is_never_negative(seed, width, distance):
    assert (divergence(*rows_near(seed, (5, width), "F32", 1, distance), width) >= 0).all()


def test_no_rows_are_no_rows():
    assert divergence(np.empty(0, np.float32), np.empty(0, np.float32), 5).size == 0


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_entry_breaks_its_row_and_no_other(broken):
    row, base = rows_near(1, (3, 50))
    row[60] = broken
    np.testing.assert_array_equal(np.isnan(divergence(row, base, 50)), [False, True, False])


def test_an_entry_of_minus_infinity_has_no_share():
    row, base = rows_near(1, (2, 50))
    row[60] = -np.inf
    check(row, base, 50)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("width", [1, 3, 100])
def test_importance_is_the_distance_times_the_divergence(name, width):
    row, base = rows_near(2, (6, width), name)
    factors = np.linspace(1e-9, 2, 6)
    scores = np.empty(row.size, np.float32)
    fused.importance(row, base, width, factors, scores)
    distances = np.abs(decode(row) - decode(base)).reshape(6, width)
    np.testing.assert_array_equal(scores, (distances * factors[:, None]).astype(np.float32).reshape(-1))


def replaced(row, base, width, factors, threshold, name):
    out = np.empty(row.size, RAW[name])
    fused.replace_important(row, base, width, factors, threshold, out)
    return out


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("width", [1, 3, 100])
def test_entries_of_an_importance_that_reaches_the_threshold_are_replaced(name, width):
    row, base = rows_near(2, (6, width), name)
    factors = np.linspace(1e-9, 2, 6)
    scores = np.empty(row.size, np.float32)
    fused.importance(row, base, width, factors, scores)
    for threshold in (0.0, float(scores[row.size // 2]), float(scores.max()), np.inf):
        found = replaced(row, base, width, factors, threshold, name)
        np.testing.assert_array_equal(found, np.where(scores >= np.float32(threshold), row, base))


def test_broken_entries_are_not_passed_over():
    base = np.zeros(4, np.float32)
    row = np.array([np.nan, np.inf, 1, 0], np.float32)
    found = replaced(row, base, 4, np.array([np.nan]), 1.0, "F32")
    np.testing.assert_array_equal(found, [np.nan, np.nan, 0, 0])


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("width", [1, 5, 200])
def test_twins(wrap, width):
    row, base = rows_near(4, (30, width))
    found = np.empty(30)
    arrays.row_divergence(wrap(row), wrap(base), width, found)
    np.testing.assert_allclose(found, divergence(row, base, width), rtol=1e-9, atol=1e-18)
    factors = np.linspace(0, 2, 30)
    scores, twin = np.empty(row.size, np.float32), np.empty(row.size, np.float32)
    fused.importance(row, base, width, factors, scores)
    arrays.importance(wrap(row), wrap(base), width, factors, twin)
    np.testing.assert_array_equal(twin, scores)
