import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, RAW, assert_rounded_sum, decode, encode, weights_like

from mergekit.kernels.combine import TILE
from mergekit.kernels.fused import combine, combine_deltas, widen

SIZES = (0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 7)


def coefficients_for(seed, count, name):
    """As methods give them: float64 where the rows are float32."""
    dtype = np.float64 if name == "F32" else np.float32
    return np.random.default_rng(seed).uniform(-1, 2, count).astype(dtype)


def unit_of(name):
    return 2.0**-52 if name == "F32" else 2.0**-24


def check_combine(count, size, name, out_name, seed=0):
    rows = weights_like(seed, (count, size), name)
    coefficients = coefficients_for(seed, count, name)
    out = np.full(size, 77, RAW[out_name])
    combine(rows, coefficients, out)
    terms = coefficients[:, None].astype(np.float64) * decode(rows)
    assert_rounded_sum(out, terms.sum(0), np.abs(terms).sum(0), out_name, unit_of(name), 2 * count)


def check_deltas(count, size, name, out_name, seed=0):
    base = weights_like(seed + 1, size, name)
    rows = encode(decode(base) + decode(weights_like(seed, (count, size), "F32", 0.01)), name)
    coefficients = coefficients_for(seed, count, name)
    out = np.full(size, 77, RAW[out_name])
    combine_deltas(base, rows, coefficients, out)
    origin = decode(base).astype(np.float64)
    terms = coefficients[:, None].astype(np.float64) * (decode(rows) - origin)
    magnitude = np.abs(origin) + (np.abs(coefficients)[:, None] * (np.abs(decode(rows)) + np.abs(origin))).sum(0)
    # Deltas of float32 rows are themselves rounded to float32.
    assert_rounded_sum(out, origin + terms.sum(0), magnitude, out_name, 2.0**-24, 2 * count + 1)


@pytest.mark.parametrize("out_name", FORMATS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_combine_around_the_edges_of_a_tile(name, out_name, size):
    for count in range(1, 6):
        check_combine(count, size, name, out_name)


@pytest.mark.parametrize("out_name", FORMATS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_combine_deltas_around_the_edges_of_a_tile(name, out_name, size):
    for count in range(1, 6):
        check_deltas(count, size, name, out_name)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.integers(0, 5000), st.sampled_from(FORMATS), st.sampled_from(FORMATS), st.integers(0, 10**6)
)
def test_any_shape_and_format(count, size, name, out_name, seed):
    check_combine(count, size, name, out_name, seed)
    check_deltas(count, size, name, out_name, seed)


@pytest.mark.parametrize("name", FORMATS)
def test_one_row_times_one_is_that_row(name):
    row = weights_like(5, 5000, name)
    out = np.empty_like(row)
    combine(row[None], coefficients_for(0, 1, name) * 0 + 1, out)
    np.testing.assert_array_equal(out, row)


@pytest.mark.parametrize("name", FORMATS)
def test_no_delta_gives_the_base(name):
    base = weights_like(5, 5000, name)
    out = np.empty_like(base)
    combine_deltas(base, np.stack([base, base]), coefficients_for(0, 2, name), out)
    np.testing.assert_array_equal(out, base)


def test_infinities_and_nans_go_through():
    rows = np.array([[np.inf, 1, np.nan, np.inf], [1, -np.inf, 1, -np.inf]], np.float32)
    out = np.empty(4, np.float32)
    combine(rows, np.array([0.5, 0.5]), out)
    np.testing.assert_array_equal(out, np.array([np.inf, -np.inf, np.nan, np.nan], np.float32))


def test_float32_rows_are_summed_in_float64():
    rows = np.array([[1.0], [2.0**-30], [-1.0]], np.float32)
    out = np.empty(1, np.float32)
    combine(rows, np.ones(3), out)
    assert out[0] == 2.0**-30


def test_arrays_that_cannot_be_written_are_read():
    rows = weights_like(1, (2, 100), "BF16")
    rows.flags.writeable = False
    out = np.empty(100, np.uint16)
    combine(rows, np.array([1, 0], np.float32), out)
    np.testing.assert_array_equal(out, rows[0])


def test_arrays_with_gaps_are_refused():
    with pytest.raises(ValueError, match="contiguous"):
        widen(np.zeros(10, np.uint16)[::2], np.empty(5, np.float32))
