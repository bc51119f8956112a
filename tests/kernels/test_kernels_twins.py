"""The reductions of `arrays` on NumPy and torch arrays give what the fused kernels give on the same float32 input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import weights_like

from mergekit.kernels import GRAIN, arrays, fused, grains
from mergekit.methods import contract

TOP = 0x7FFFFFFF
LIBRARIES = ("numpy", "torch")


def wrapped(library, array):
    if library == "numpy":
        return array
    return torch.from_numpy(array)


def stack(seed, count, size, steps=0):
    """A base and rows; with `steps`, deltas take few values."""
    rows = weights_like(seed, (count + 1, size))
    if steps:
        random = np.random.default_rng(seed)
        rows[0] = np.round(rows[0] * 2**12) / 2**12
        rows[1:] = rows[0] + random.integers(-steps, steps + 1, (count, size)).astype(np.float32) / 2**12
    return rows


def both(library, kernel, rows, output, *arguments):
    """Outputs and answers of a kernel of one row and the base, fused and twin."""
    found = []
    for reducers, array in ((fused, rows), (arrays, wrapped(library, rows))):
        out = output()
        answer = getattr(reducers, kernel)(array[1], array[0], *arguments, out)
        found.append((out, answer))
    return found


shapes = st.tuples(st.integers(0, 10**6), st.integers(1, 3 * GRAIN), st.sampled_from([0, 2, 300]))


@pytest.mark.parametrize("library", LIBRARIES)
@settings(max_examples=15, deadline=None)
@given(shape=shapes, count=st.integers(1, 4))
def test_dot_products(library, shape, count):
    seed, size, steps = shape
    rows = stack(seed, count, size, steps)
    sums = [np.empty((grains(size), count + 1, count + 1)) for _ in range(2)]
    fused.gram(rows, sums[0])
    arrays.gram(wrapped(library, rows), sums[1])
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-11, atol=1e-14)
    sums = [np.empty((grains(size), count, count)) for _ in range(2)]
    fused.gram_deltas(rows[0], rows[1:], sums[0])
    arrays.gram_deltas(wrapped(library, rows)[0], wrapped(library, rows)[1:], sums[1])
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("library", LIBRARIES)
@settings(max_examples=25, deadline=None)
@given(shape=shapes, data=st.data())
def test_sweeps(library, shape, data):
    seed, size, steps = shape
    rows = stack(seed, 1, size, steps)
    bits = (rows[1] - rows[0]).view(np.uint32) & np.uint32(TOP)
    limits = st.sampled_from([0, *bits[:9].tolist(), TOP]) | st.integers(0, TOP)
    low, high = sorted([data.draw(limits), data.draw(limits)])
    shift = max(0, (high - low).bit_length() - 14)
    (bins, above), (twin_bins, twin_above) = both(library, "sweep", rows, arrays.fresh_bins, low, high, shift)
    np.testing.assert_array_equal(twin_bins, bins)
    assert twin_above == above


@pytest.mark.parametrize("library", LIBRARIES)
@settings(max_examples=15, deadline=None)
@given(shape=shapes)
def test_magnitudes_and_counts_of_a_few_values(library, shape):
    seed, size, steps = shape
    rows = stack(seed, 1, size, steps)
    (bits, _), (twin_bits, _) = both(library, "magnitude_bits", rows, lambda: np.empty(size, np.uint32))
    np.testing.assert_array_equal(twin_bits, bits)
    values = np.array(sorted({0, int(bits[0]), int(bits[-1]), TOP}), np.uint32)
    counts = []
    for reducers, array in ((fused, rows), (arrays, wrapped(library, rows))):
        equal, above = np.empty((grains(size), values.size), np.int32), np.ones(values.size, np.int64)
        reducers.count_values(array[1], array[0], values, equal, above)
        counts.append((equal, above))
    np.testing.assert_array_equal(counts[1][0], counts[0][0])
    np.testing.assert_array_equal(counts[1][1], counts[0][1])


@pytest.mark.parametrize("library", LIBRARIES)
@settings(max_examples=25, deadline=None)
@given(shape=shapes, data=st.data())
def test_masses(library, shape, data):
    seed, size, steps = shape
    rows = stack(seed, 1, size, steps)
    bits = (rows[1] - rows[0]).view(np.uint32) & np.uint32(TOP)
    cut = data.draw(st.sampled_from([0, *bits[:5].tolist(), TOP, 0xFFFFFFFF]))
    edge = data.draw(st.sampled_from([-(10**12), -1, 0, size // 2, size, 10**12]))
    (sums, _), (twin_sums, _) = both(library, "masses", rows, lambda: np.empty((grains(size), 2)), cut, edge)
    np.testing.assert_allclose(twin_sums, sums, rtol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("cut", [0, 0x3F800000, TOP, 0xFFFFFFFF])
@pytest.mark.parametrize("edge", [-7, -1, 0, 3, 10**12])
def test_trimming_keeps_what_passes(library, cut, edge):
    deltas = np.array([[1, -1, 2, 0, -3, 0.5, 1]], np.float32)
    cuts, edges = np.array([cut], np.uint32), np.array([edge], np.int64)
    kept = arrays.host(arrays.trim(wrapped(library, deltas), cuts, edges))
    bits = deltas.view(np.uint32) & np.uint32(TOP)
    expected = np.where((bits > cut) | ((bits == cut) & (np.arange(7) <= edge)), deltas, 0)
    np.testing.assert_array_equal(kept, expected)


def test_both_modules_have_the_same_kernels():
    names = contract.Reducers.__annotations__
    assert len(names) > 0
    assert all(callable(getattr(twin, name)) for name in names for twin in (arrays, fused))
