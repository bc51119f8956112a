"""Tensors with adapters, read in stretches: the same entries as of the whole, and as NumPy computes them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_in_memory import Memory

from mergekit.plan.views import InPlace, LowRank, NewRows, Normed, Shifted

KINDS = ("product", "transposed product", "norms", "norms of columns", "offset", "rows", "other dtype", "nested")


def widened(raw):
    return (raw.astype(np.uint32) << 16).view(np.float32)


def made(kind, height, width, rank, seed):
    """A view of this kind, what reads it, and its entries in float64."""
    random = np.random.default_rng(seed)

    def numbers(*shape):
        return random.normal(size=shape).astype(np.float32)

    memory = Memory()
    base = (numbers(height, width).view(np.uint32) >> 16).astype(np.uint16)
    exact = widened(base).astype(np.float64)
    view = memory.store("base", base)
    if kind in ("product", "norms", "nested"):
        a, b = numbers(rank, width), numbers(height, rank)
        view, exact = LowRank(view, memory.store("a", a), memory.store("b", b), 0.5), exact + 0.5 * b.astype(float) @ a
    if kind in ("transposed product", "norms of columns"):
        a, b = numbers(rank, height), numbers(width, rank)
        view = LowRank(view, memory.store("a", a), memory.store("b", b), 0.5, transposed=True)
        exact = exact + 0.5 * (b.astype(float) @ a).T
    if kind in ("norms", "norms of columns"):
        axis = 1 if kind == "norms" else 0
        norms = numbers(exact.shape[1 - axis])
        view = Normed(view, memory.store("norms", norms), transposed=axis == 0)
        exact = exact / np.sqrt((exact**2).sum(axis, keepdims=True)) * np.expand_dims(norms, axis)
    if kind in ("offset", "nested"):
        offset = numbers(height, width)
        view, exact = Shifted(view, memory.store("offset", offset), 3.0), exact + 3.0 * offset
    if kind in ("rows", "nested"):
        chosen = random.permutation(height)[: (height + 1) // 2]
        rows = numbers(len(chosen), width)
        view = NewRows(view, memory.store("rows", rows), tuple(map(int, chosen)))
        exact[chosen] = rows
    if kind == "other dtype":
        other = numbers(height, width)
        view, exact = InPlace(memory.store("other", other), view.spec, view.names), other.astype(np.float64)
    return view, memory, exact


def entries_of(view, memory, start, stop):
    into = np.full(stop - start, np.nan, np.float32)
    view.read(memory, start, stop, into)
    return into


@given(
    kind=st.sampled_from(KINDS),
    height=st.integers(1, 9),
    width=st.integers(1, 30),
    rank=st.integers(1, 6),
    cuts=st.lists(st.floats(0, 1), max_size=5),
)
@settings(max_examples=120, deadline=None)
def test_stretches_are_those_of_the_whole(kind, height, width, rank, cuts):
    view, memory, exact = made(kind, height, width, rank, 31 * height + width)
    assert (view.spec.name, view.spec.dtype.name, view.spec.shape) == ("base", "BF16", (height, width))
    assert (view.names, view.row_format) == (("base",), "F32")
    whole = entries_of(view, memory, 0, exact.size)
    size = np.abs(exact).max() + 10
    assert np.abs(whole.reshape(exact.shape) - exact).max() <= 1e-6 * size
    edges = [0, *sorted(int(cut * exact.size) for cut in cuts), exact.size]
    parts = [entries_of(view, memory, start, stop) for start, stop in pairwise(edges)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_announced(kind):
    view, memory, exact = made(kind, 7, 300, 3, 5)
    memory.begin()
    entries_of(view, memory, 0, exact.size)
    again = 4 * 3 * (7 + 300) if kind == "norms of columns" else 0  # the second pass has the factors at hand
    assert memory.read_bytes == view.nbytes - again
    kept = sum(part.nbytes for made in memory.made.values() for part in (made if isinstance(made, tuple) else (made,)))
    assert kept <= view.kept_bytes
    assert view.rows(3).kept_bytes == view.kept_bytes


@pytest.mark.parametrize("kind", KINDS)
@given(bounds=st.tuples(st.integers(0, 7 * 30), st.integers(0, 7 * 30)))
@settings(max_examples=20, deadline=None)
def test_no_byte_is_read_that_was_not_among_the_extents(kind, bounds):
    view, memory, _ = made(kind, 7, 30, 3, 5)
    start, stop = sorted(bounds)
    entries_of(view, memory, 0, 0)  # whatever needs a pass over everything has it behind itself
    announced = {(extent.file, at) for extent in view.extents(start, stop) for at in range(extent.start, extent.stop)}
    seen = set()
    memory.read, read = lambda extent, into: (seen.add(extent), read(extent, into)), memory.read
    entries_of(view, memory, start, stop)
    assert {(extent.file, at) for extent in seen for at in range(extent.start, extent.stop)} <= announced


def test_factors_are_read_once_for_all_stretches():
    view, memory, exact = made("product", 8, 100, 3, 5)
    memory.begin()
    for start in range(0, exact.size, 50):
        entries_of(view, memory, start, start + 50)
    assert memory.read_bytes == view.nbytes


def test_a_line_without_length_has_no_direction():
    memory = Memory()
    view = Normed(memory.store("base", np.zeros((2, 3), np.float32)), memory.store("m", np.ones(2, np.float32)))
    assert np.isnan(entries_of(view, memory, 0, 6)).all()
