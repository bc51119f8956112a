import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, RAW, decode, encode, weights_like

from mergekit.kernels import BINS, GRAIN, grains
from mergekit.kernels.arrays import fresh_bins
from mergekit.kernels.elect import TILE
from mergekit.kernels.fused import count_values, elect_sum, magnitude_bits, masses, sweep

TOP = 0x7FFFFFFF
SIZES = (0, 1, 31, 33, 2047, 2048, 2049, GRAIN + 1, 3 * GRAIN + 5)


def pair(seed, size, name):
    """A base, and a row whose deltas tie often, are 0 often, and have both signs."""
    base = weights_like(seed, size, name)
    steps = np.random.default_rng(seed).integers(-20, 21, size) * 2.0**-11
    return encode(decode(base) + steps, name), base


def bits_of(row, base):
    return (decode(row) - decode(base)).view(np.uint32) & np.uint32(TOP)


def expected_bins(bits, low, high, shift):
    bins = fresh_bins()
    for offset in (bits[(bits >= low) & (bits <= high)] - np.uint32(low)).tolist():
        place = offset >> shift
        bins[0, place] += 1
        bins[1, place] = min(bins[1, place], offset)
        bins[2, place] = max(bins[2, place], offset)
    return bins


def shift_for(low, high):
    return max(0, (high - low).bit_length() - 14)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_magnitudes(name, size):
    row, base = pair(size, size, name)
    found = np.empty(size, np.uint32)
    magnitude_bits(row, base, found)
    np.testing.assert_array_equal(found, bits_of(row, base))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_a_sweep_over_all_magnitudes(name, size):
    row, base = pair(size, size, name)
    bins = fresh_bins()
    assert sweep(row, base, 0, TOP, 17, bins) == 0
    np.testing.assert_array_equal(bins, expected_bins(bits_of(row, base), 0, TOP, 17))
    assert bins[0].sum() == size


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 6000), st.integers(0, 10**6), st.data())
def test_a_sweep_counts_above_and_sorts_inside_a_bracket(name, size, seed, data):
    row, base = pair(seed, size, name)
    bits = bits_of(row, base)
    limits = st.sampled_from([*sorted(set(bits.tolist()))[:: max(1, size // 40)], TOP]) | st.integers(0, TOP)
    low, high = sorted([data.draw(limits), data.draw(limits)])
    shift = shift_for(low, high)
    bins = fresh_bins()
    above = sweep(row, base, low, high, shift, bins)
    assert above == (bits > high).sum()
    np.testing.assert_array_equal(bins, expected_bins(bits, low, high, shift))


def test_a_sweep_adds_to_what_the_bins_hold():
    row, base = pair(1, 5000, "F32")
    bits, bins = bits_of(row, base), fresh_bins()
    low, high = np.quantile(bits, [0.3, 0.8]).astype(int).tolist()
    shift = shift_for(low, high)
    parts = [slice(0, 2000), slice(2000, 5000)]
    above = sum(sweep(row[part], base[part], low, high, shift, bins) for part in parts)
    np.testing.assert_array_equal(bins, expected_bins(bits, low, high, shift))
    assert above == (bits > high).sum()


def test_infinite_and_undefined_deltas_are_the_greatest():
    row = np.array([1, np.inf, -np.inf, np.nan, 0, -0.0], np.float32)
    bins = fresh_bins()
    assert sweep(row, np.zeros_like(row), 0, 0x7F7FFFFF, 17, bins) == 3
    assert bins[0].sum() == 3
    assert bins[0, 0] == 2
    assert bins[0].size == BINS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_a_few_values_are_counted_per_grain(name, size):
    row, base = pair(size, size, name)
    bits = bits_of(row, base)
    values = np.array(sorted({0, *bits[:5].tolist(), TOP}), np.uint32)
    equal = np.full((grains(size), values.size), -1, np.int32)
    above = np.full(values.size, 5, np.int64)
    count_values(row, base, values, equal, above)
    for place, value in enumerate(values):
        expected = [(bits[start : start + GRAIN] == value).sum() for start in range(0, size, GRAIN)]
        np.testing.assert_array_equal(equal[:, place], expected)
        assert above[place] == 5 + (bits > value).sum()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 3 * GRAIN), st.integers(0, 10**6), st.data())
def test_masses_before_and_after_trimming(name, size, seed, data):
    row, base = pair(seed, size, name)
    bits = bits_of(row, base)
    cut = data.draw(st.sampled_from([0, *bits[:5].tolist(), TOP, 0xFFFFFFFF]))
    edge = data.draw(st.sampled_from([-(10**12), -1, 0, size // 2, GRAIN - 1, GRAIN, size, 10**12]))
    sums = np.full((grains(size), 2), np.nan)
    masses(row, base, cut, edge, sums)
    mass = np.abs(decode(row) - decode(base)).astype(np.float64)
    kept = (bits > cut) | ((bits == cut) & (np.arange(size) <= edge))
    for grain, start in enumerate(range(0, size, GRAIN)):
        part = slice(start, start + GRAIN)
        assert sums[grain, 0] == pytest.approx(mass[part].sum(), rel=1e-12)
        assert sums[grain, 1] == pytest.approx(mass[part][kept[part]].sum(), rel=1e-12)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("edge", [-(10**12), -1, 0, 1, TILE - 2, TILE - 1, TILE, 2 * TILE, 3000, 3001, 10**12])
def test_equal_magnitudes_are_kept_up_to_the_edge(name, edge):
    size = 3002
    base, row = encode(np.zeros(size), name), encode(np.where(np.arange(size) % 3, 1.0, -1.0), name)
    one = np.array([1], np.float32)
    cut = one.view(np.uint32)
    out = np.empty(size, RAW[name])
    elect_sum(base, row[None], one, one, cut, np.array([edge], np.int64), 1.0, True, out)
    np.testing.assert_array_equal(decode(out), np.where(np.arange(size) <= edge, decode(row), 0))


@pytest.mark.parametrize("edge", [-1, 0, 10**12])
def test_a_cut_beyond_all_numbers_keeps_nothing(edge):
    row = np.array([1, -2, np.inf, 3.4e38, 0], np.float32)
    base, one = np.zeros_like(row), np.array([1], np.float32)
    out = np.empty_like(row)
    elect_sum(base, row[None], one, one, np.array([0xFFFFFFFF], np.uint32), np.array([edge]), 1.0, True, out)
    np.testing.assert_array_equal(out, base)
