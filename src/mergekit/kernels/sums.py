"""Sums over fixed grains: dot products, norms, masses.

Every sum is taken grain by grain, a grain being a fixed number of consecutive entries counted from the tensor's first.
Stripes hold whole grains, so the list of grain sums does not depend on how a tensor was cut or who computed what;
`math.fsum` over that list then gives one correctly rounded number, the same in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import GRAIN
from mergekit.kernels.compiling import inner, inner_sum
from mergekit.kernels.numbers import MAGNITUDE, as_bits, load, stack_array

Raw = NDArray[Any]


SCRATCH = 1024  # entries of all rows together; float64, in the first-level cache beside the inputs


@inner
def _widen(out: Raw, row: Raw) -> None:
    for j in range(out.size):
        out[j] = load(row[j])


@inner
def _widen_delta(out: Raw, row: Raw, base: Raw) -> None:
    for j in range(out.size):
        out[j] = load(row[j]) - load(base[j])


@inner_sum
def _square(row: Raw) -> Any:
    total = 0.0
    for j in range(row.size):
        total += row[j] * row[j]
    return total


@inner_sum
def _two_dots(row: Raw, one: Raw, other: Raw) -> Any:
    first, second = 0.0, 0.0
    for j in range(row.size):
        first += row[j] * one[j]
        second += row[j] * other[j]
    return first, second


@inner
def _add_dots(sums: Raw, scratch: Raw, i: Any, room: Any, size: Any) -> None:
    """Of row i of the scratch with those before it, and with itself; two at a time, as loading is what takes time."""
    row = scratch[i * room : i * room + size]
    for other in range(0, i, 2):
        start = other * room
        first, second = _two_dots(row, scratch[start : start + size], scratch[start + room : start + room + size])
        sums[i, other] += first
        sums[i, other + 1] += second
    if i % 2 == 0:
        sums[i, i] += _square(row)


@inner
def _mirror(sums: Raw) -> None:
    for i in range(sums.shape[0]):
        for other in range(i):
            sums[other, i] = sums[i, other]


def gram(base: Raw, rows: Raw, grain: int, sums: Raw) -> None:
    """Dot products of all pairs of rows, or of their deltas, per grain.

    Parameters:
        base: raw entries, shape (n,), or (0,) for zeros.
        rows: raw entries, shape (k, n), k ≤ `SCRATCH`.
        grain: entries.
        sums: float64, shape (grains, k, k), written.
    """
    scratch = stack_array(1024, sums)  # SCRATCH, spelled out: the size must be a literal
    room = SCRATCH // max(1, rows.shape[0])
    for index in range(sums.shape[0]):
        sums[index] = 0
        last = min((index + 1) * grain, rows.shape[1])
        for start in range(index * grain, last, room):
            stop = min(start + room, last)
            for i in range(rows.shape[0]):
                wide = scratch[i * room : i * room + stop - start]
                if base.size == 0:
                    _widen(wide, rows[i, start:stop])
                else:
                    _widen_delta(wide, rows[i, start:stop], base[start:stop])
                _add_dots(sums[index], scratch, i, room, stop - start)
        _mirror(sums[index])


@inner
def _add_products(total: Raw, left: Raw, right: Raw) -> None:
    for j in range(total.size):
        total[j] += np.float64(load(left[j])) * np.float64(load(right[j]))


@inner
def _add_delta_products(total: Raw, left: Raw, right: Raw, base: Raw) -> None:
    for j in range(total.size):
        origin = load(base[j])
        total[j] += np.float64(load(left[j]) - origin) * np.float64(load(right[j]) - origin)


def column_gram(base: Raw, rows: Raw, grain: int, sums: Raw) -> None:
    """Dot products of all pairs of columns, or of their deltas, per grain.

    Parameters:
        base: raw entries, shape (n,), or (0,) for zeros.
        rows: raw entries, shape (k, n): the lines of k matrices of m columns, one after the other.
        grain: entries, a multiple of m.
        sums: float64, shape (grains, k (k + 1) / 2, m), written; pairs (0, 0), (1, 0), (1, 1), (2, 0) and so on.
    """
    width = sums.shape[2]
    for index in range(sums.shape[0]):
        sums[index] = 0
        for start in range(index * grain, min((index + 1) * grain, rows.shape[1]), width):
            stop = start + width
            pair = 0
            for i in range(rows.shape[0]):
                for other in range(i + 1):
                    left, right = rows[i, start:stop], rows[other, start:stop]
                    if base.size == 0:
                        _add_products(sums[index, pair], left, right)
                    else:
                        _add_delta_products(sums[index, pair], left, right, base[start:stop])
                    pair += 1


@inner_sum
def _squares(row: Raw, reference: Raw) -> Any:
    own, apart, other = np.float32(0), np.float32(0), np.float32(0)
    for j in range(row.size):
        entry = load(row[j])
        origin = load(reference[j])
        difference = entry - origin
        own += entry * entry
        apart += difference * difference
        other += origin * origin
    return np.float64(own), np.float64(apart), np.float64(other)


@inner_sum
def _wide_squares(row: Raw, reference: Raw) -> Any:
    own, apart, other, broken = 0.0, 0.0, 0.0, 0
    for j in range(row.size):
        if as_bits(load(row[j])) & MAGNITUDE >= np.uint32(0x7F800000):
            broken += 1
        else:
            entry = np.float64(load(row[j]))
            origin = np.float64(load(reference[j]))
            own += entry * entry
            apart += (entry - origin) * (entry - origin)
            other += origin * origin
    return own, apart, other, broken


def measure(row: Raw, reference: Raw, grain: int, sums: Raw) -> int:
    """Squared norm of a row, of its distance to a reference and of the reference, per grain.

    Up to `GRAIN` entries at a time are summed in float32; a sum that overflows or is not a number is taken again in
    float64, leaving out entries that are not finite.

    Parameters:
        row: raw entries, shape (n,).
        reference: raw entries, shape (n,).
        grain: entries.
        sums: float64, shape (grains, 3), written.

    Returns:
        How many entries of `row` are infinite or not a number.
    """
    broken = 0
    for index in range(sums.shape[0]):
        sums[index] = 0
        last = min((index + 1) * grain, row.size)
        for start in range(index * grain, last, GRAIN):
            stop = min(start + GRAIN, last)
            own, apart, other = _squares(row[start:stop], reference[start:stop])
            if not np.isfinite(own + apart + other):
                own, apart, other, found = _wide_squares(row[start:stop], reference[start:stop])
                broken += found
            sums[index, 0] += own
            sums[index, 1] += apart
            sums[index, 2] += other
    return broken
