"""The reductions of `arrays` on NumPy and torch arrays give what the fused kernels give on the same float32 input."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import weights_like

from mergekit import methods
from mergekit.kernels import GRAIN, arrays, fused, grains

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
    fused.gram(rows[0, :0], rows, GRAIN, sums[0])
    arrays.gram(wrapped(library, rows)[0, :0], wrapped(library, rows), GRAIN, sums[1])
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-11, atol=1e-14)
    sums = [np.empty((grains(size), count, count)) for _ in range(2)]
    fused.gram(rows[0], rows[1:], GRAIN, sums[0])
    arrays.gram(wrapped(library, rows)[0], wrapped(library, rows)[1:], GRAIN, sums[1])
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
        reducers.count_values(array[1], array[0], values, GRAIN, equal, above)
        counts.append((equal, above))
    np.testing.assert_array_equal(counts[1][0], counts[0][0])
    np.testing.assert_array_equal(counts[1][1], counts[0][1])


@pytest.mark.parametrize("library", LIBRARIES)
@settings(max_examples=25, deadline=None)
@given(shape=shapes)
def test_norms(library, shape):
    seed, size, steps = shape
    rows = stack(seed, 1, size, steps)
    votes = (rows[1] - rows[0]) * (np.random.default_rng(seed).random(size) < 0.5).astype(np.float32)
    sums = [np.empty((grains(size), 3, 2)) for _ in range(2)]
    fused.norms(votes, rows[1], rows[0], GRAIN, sums[0])
    row, base = wrapped(library, rows[1]), wrapped(library, rows[0])
    arrays.norms(wrapped(library, votes), row, base, GRAIN, sums[1])
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("cut", [0, 0x3F800000, TOP, 0xFFFFFFFF])
@pytest.mark.parametrize("edge", [-7, -1, 0, 3, 10**12])
def test_trimming_keeps_what_passes_the_first_cut_and_not_the_second(library, cut, edge):
    delta = np.array([1, -1, 2, 0, -3, 0.5, 1], np.float32)
    bits = delta.view(np.uint32) & np.uint32(TOP)
    passing = (bits > cut) | ((bits == cut) & (np.arange(7) <= edge))
    for others, kept in (((cut, 0xFFFFFFFF), passing), ((0, cut), ~passing)):
        edges = (edge, -1) if others[0] == cut and kept is passing else (10**12, edge)
        found = arrays.trim(wrapped(library, delta), np.array(others, np.uint32), np.array(edges))
        np.testing.assert_array_equal(arrays.host(found), np.where(kept, delta, 0))


def test_both_modules_have_the_kernels_that_reductions_call():
    sources = [path.read_text() for path in Path(methods.__file__).parent.rglob("*.py")]
    names = {name for source in sources for name in re.findall(r"\.reducers\.(\w+)", source)}
    assert {"gram", "sweep", "row_ranks"} <= names
    assert [name for name in names for twin in (arrays, fused) if not callable(getattr(twin, name, None))] == []
