import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, decode, encode, weights_like

from mergekit.kernels import GRAIN, grains
from mergekit.kernels.fused import gram, measure

SIZES = (0, 1, 2047, 2048, 2049, GRAIN - 1, GRAIN, GRAIN + 1, 3 * GRAIN + 5)


def per_grain(values):
    """Stretches of whole grains along the last axis, in float64."""
    size = values.shape[-1]
    return [values[..., start : start + GRAIN].astype(np.float64) for start in range(0, size, GRAIN)]


def assert_dots(sums, vectors):
    """Every grain's dot products, to the accuracy of sums in float64."""
    assert len(sums) == len(vectors)
    for found, part in zip(sums, vectors, strict=True):
        exact = part @ part.T
        norms = np.sqrt(np.diag(exact))
        assert (np.abs(found - exact) <= 1e-12 * np.outer(norms, norms)).all()
        np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize(("entries", "count"), [(0, 0), (1, 1), (GRAIN, 1), (GRAIN + 1, 2), (10 * GRAIN, 10)])
def test_grains(entries, count):
    assert grains(entries) == count


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_gram_per_grain(name, size):
    for count in range(1, 6):
        rows = weights_like(count, (count, size), name)
        sums = np.full((grains(size), count, count), np.nan)
        gram(rows[0, :0], rows, GRAIN, sums)
        assert_dots(sums, per_grain(decode(rows)))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_gram_of_deltas_per_grain(name, size):
    for count in range(1, 6):
        base = weights_like(99, size, name)
        rows = encode(decode(base) + decode(weights_like(count, (count, size), "F32", 0.01)), name)
        sums = np.full((grains(size), count, count), np.nan)
        gram(base, rows, GRAIN, sums)
        assert_dots(sums, per_grain(decode(rows) - decode(base)))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3 * GRAIN), st.sampled_from(FORMATS), st.integers(0, 10**6))
def test_gram_of_any_shape(count, size, name, seed):
    rows = weights_like(seed, (count, size), name)
    sums = np.empty((grains(size), count, count))
    gram(rows[0, :0], rows, GRAIN, sums)
    assert_dots(sums, per_grain(decode(rows)))


def measured(row, reference):
    sums = np.full((grains(row.size), 3), np.nan)
    broken = measure(row, reference, GRAIN, sums)
    return sums, broken


def expected_measure(row, reference):
    """Sums over entries that are finite in the row."""
    found = []
    for part, origin in zip(per_grain(decode(row)), per_grain(decode(reference)), strict=True):
        whole = np.isfinite(part)
        part, origin = part[whole], origin[whole]
        found.append([(part**2).sum(), ((part - origin) ** 2).sum(), (origin**2).sum()])
    return np.array(found).reshape(-1, 3)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_measure_per_grain(name, size):
    row, reference = weights_like(1, size, name), weights_like(2, size, name)
    sums, broken = measured(row, reference)
    np.testing.assert_allclose(sums, expected_measure(row, reference), rtol=2e-5)
    assert broken == 0


def test_measure_across_formats():
    row, reference = weights_like(1, 5000, "F32"), weights_like(2, 5000, "BF16")
    sums, broken = measured(row, reference)
    np.testing.assert_allclose(sums, expected_measure(row, reference), rtol=2e-5)
    assert broken == 0


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 3 * GRAIN), st.integers(0, 50), st.integers(0, 10**6))
def test_broken_entries_are_counted_exactly_and_left_out(name, size, wanted, seed):
    random = np.random.default_rng(seed)
    row, reference = weights_like(seed, size, name), weights_like(seed + 1, size, name)
    places = random.choice(size, min(wanted, size), replace=False)
    row[places] = encode(random.choice([np.inf, -np.inf], places.size), name)
    row[places[::3]] = {"BF16": np.uint16(0x7FC1), "F16": np.int16(0x7E01), "F32": np.float32(np.nan)}[name]
    sums, broken = measured(row, reference)
    assert broken == places.size
    np.testing.assert_allclose(sums, expected_measure(row, reference), rtol=2e-5)


@pytest.mark.parametrize("name", ["BF16", "F32"])
def test_squares_beyond_float32_are_summed_in_float64(name):
    values = np.random.default_rng(0).normal(0, 1e30, 2 * GRAIN)
    row, reference = encode(values, name), encode(values[::-1], name)
    sums, broken = measured(row, reference)
    assert broken == 0
    np.testing.assert_allclose(sums, expected_measure(row, reference), rtol=1e-12)


def test_only_grains_that_overflow_are_summed_again():
    row = weights_like(1, 3 * GRAIN, "F32")
    row[GRAIN + 5], row[GRAIN + 9] = 3e38, np.nan
    sums, broken = measured(row, row)
    assert broken == 1
    np.testing.assert_allclose(sums, expected_measure(row, row), rtol=2e-5)


@pytest.mark.parametrize("value", [1e-20, 1e-30, 1e-40, 1.4e-45])
def test_squares_below_float32_vanish_without_harm(value):
    row = np.full(GRAIN, value, np.float32)
    sums, broken = measured(row, np.zeros_like(row))
    assert broken == 0
    np.testing.assert_allclose(sums, expected_measure(row, np.zeros_like(row)), rtol=2e-5, atol=GRAIN * 2.0**-149)
