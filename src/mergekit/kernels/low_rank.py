"""Products of two thin matrices, added to a stretch of a large one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner
from mergekit.kernels.numbers import stack_array

Raw = NDArray[Any]

COLUMNS = 512  # of a tile; its rows of `right` stay in the first-level cache while all lines pass


@inner
def _add_one(total: Raw, factor: Any, row: Raw) -> None:
    for j in range(total.size):
        total[j] += factor * row[j]


@inner
def _add_four(total: Raw, factors: Raw, one: Raw, two: Raw, three: Raw, four: Raw) -> None:
    """Four ranks in one pass over the tile, added one after the other as :func:`_add_one` does."""
    a, b, c, d = factors[0], factors[1], factors[2], factors[3]
    for j in range(total.size):
        entry = total[j]
        entry += a * one[j]
        entry += b * two[j]
        entry += c * three[j]
        entry += d * four[j]
        total[j] = entry


@inner
def _add_line(row: Raw, total: Raw, factors: Raw, right: Raw, first: Any) -> None:
    total[:] = np.float32(0)
    rank, last = factors.size, first + row.size
    for k in range(0, rank - 3, 4):
        one, two = right[k, first:last], right[k + 1, first:last]
        three, four = right[k + 2, first:last], right[k + 3, first:last]
        _add_four(total, factors[k : k + 4], one, two, three, four)
    for k in range(rank - rank % 4, rank):
        _add_one(total, factors[k], right[k, first:last])
    for j in range(row.size):
        row[j] += total[j]


def add_low_rank(row: Raw, first: int, left: Raw, right: Raw) -> None:
    """Add ``left @ right`` to a stretch of a matrix: ``row[j] += Σ_k left[i, k] · right[k, c]``.

    Entry `j` stands in line ``i = (first + j) // width`` and column ``c = (first + j) % width``. The sum is taken in
    float32, from the first rank to the last, before it is added; it is the same wherever a stretch begins and ends.

    Parameters:
        row: float32 entries, shape (n,): those from `first` on.
        first: place of the first entry in the matrix.
        left: float32, shape (lines, rank).
        right: float32, shape (rank, width).
    """
    tile = stack_array(512, row)  # COLUMNS, spelled out: the size must be a literal
    width, last = right.shape[1], first + row.size
    for column in range(0, width, COLUMNS):
        size = min(COLUMNS, width - column)
        for line in range(first // width, (last + width - 1) // width):
            start = max(first, line * width + column)
            stop = min(last, line * width + column + size)
            if start < stop:
                part = row[start - first : stop - first]
                _add_line(part, tile[: stop - start], left[line], right, start - line * width)
