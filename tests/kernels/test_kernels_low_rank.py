"""Products of thin matrices, added to stretches of a large one."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit.kernels import fused
from mergekit.kernels.low_rank import COLUMNS

SHAPES = [(1, 1), (5, 1), (1, 5), (3, COLUMNS - 1), (3, COLUMNS), (2, 2 * COLUMNS + 5), (300, 7)]


def factors(lines, width, rank, seed=0):
    random = np.random.default_rng(seed)
    left, right = random.normal(size=(lines, rank)), random.normal(size=(rank, width))
    return random.normal(size=lines * width).astype(np.float32), left.astype(np.float32), right.astype(np.float32)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 8, 17])
@pytest.mark.parametrize(("lines", "width"), SHAPES)
def test_the_product_is_added(lines, width, rank):
    row, left, right = factors(lines, width, rank)
    found = row.copy()
    fused.add_low_rank(found, 0, left, right)
    product = (left.astype(np.float64) @ right).reshape(-1)
    size = (np.abs(left).astype(np.float64) @ np.abs(right)).reshape(-1) + np.abs(row)
    assert (np.abs(found - (row + product)) <= (rank + 1) * 2.0**-24 * size).all()


@given(
    lines=st.integers(1, 6),
    width=st.integers(1, 40) | st.integers(COLUMNS - 20, 2 * COLUMNS + 20),
    rank=st.integers(1, 11),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    offset=st.integers(0, 15),
)
@settings(max_examples=150, deadline=None)
def test_bits_do_not_depend_on_where_a_stretch_begins_and_ends(lines, width, rank, cuts, offset):
    """Nor on where it lies in memory, by which compilers choose what they do at the edges."""
    row, left, right = factors(lines, width, rank, seed=width)
    whole = row.copy()
    fused.add_low_rank(whole, 0, left, right)
    moved = np.zeros(row.size + 16, np.float32)[offset : offset + row.size]
    moved[:] = row
    edges = [0, *sorted(int(cut * row.size) for cut in cuts), row.size]
    for start, stop in pairwise(edges):
        fused.add_low_rank(moved[start:stop], start, left, right)
    assert moved.tobytes() == whole.tobytes()


def test_a_product_that_is_not_finite_shows():
    row, left, right = factors(3, 5, 2)
    left[1, 1] = np.inf
    fused.add_low_rank(row, 0, left, right)
    assert np.isfinite(row.reshape(3, 5)).all(axis=1).tolist() == [True, False, True]
