import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, decode, encode, weights_like

from mergekit.kernels import BINS, GRAIN, arrays, fused, grains
from mergekit.kernels.arrays import fresh_bins
from mergekit.kernels.fused import count_values, magnitude_bits, sweep
from mergekit.kernels.select import TILE

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


@pytest.mark.parametrize("reducers", [fused, arrays])
def test_a_base_without_entries_stands_for_zeros(reducers):
    row = weights_like(3, 5000, "F32")
    nothing, zeros = row[:0], np.zeros_like(row)
    found = []
    for base in (nothing, zeros):
        bits, bins, equal, above = np.empty(5000, np.uint32), fresh_bins(), np.empty((2, 2), np.int32), np.zeros(2, int)
        reducers.magnitude_bits(row, base, bits)
        reducers.count_values(row, base, bits[:2], GRAIN, equal, above)
        found.append([bits, bins, equal, above, reducers.sweep(row, base, 0, TOP, 17, bins)])
    for own, other in zip(*found, strict=True):
        np.testing.assert_array_equal(own, other)
    np.testing.assert_array_equal(found[0][0], row.view(np.uint32) & np.uint32(TOP))


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
    count_values(row, base, values, GRAIN, equal, above)
    for place, value in enumerate(values):
        expected = [(bits[start : start + GRAIN] == value).sum() for start in range(0, size, GRAIN)]
        np.testing.assert_array_equal(equal[:, place], expected)
        assert above[place] == 5 + (bits > value).sum()


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 3 * TILE),
    values=st.sampled_from([3, 1000, 2**31]),
    room=st.sampled_from([0, 10, 4 * TILE]),
    wanted=st.booleans(),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_what_lies_in_a_bracket_is_collected_in_its_order(size, values, room, wanted, seed, data):
    bits = np.random.default_rng(seed).integers(0, values, size, dtype=np.uint32)
    ends = st.one_of(st.integers(0, values), st.sampled_from([0, 0xFFFFFFFF]))
    low, high = sorted((data.draw(ends), data.draw(ends)))
    found, places, counts = np.zeros(room, np.uint32), np.zeros(room * wanted, np.int64), np.empty(2, np.int64)
    fused.collect(bits, low, high, 7, found, places, counts)
    inside = np.flatnonzero((bits >= low) & (bits <= high))
    assert counts.tolist() == [inside.size, np.count_nonzero(bits > high)]
    if inside.size <= room:
        np.testing.assert_array_equal(found[: inside.size], bits[inside])
        np.testing.assert_array_equal(places[: inside.size * wanted], (inside + 7)[: inside.size * wanted])
