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
from mergekit.kernels.numbers import MAGNITUDE, as_bits, load

Raw = NDArray[Any]


@inner
def _entry(row: Raw, base: Any, j: Any) -> Any:
    """An entry, or its difference from the base's; the compiler knows which if there is no base."""
    if base is None:
        return np.float64(load(row[j]))
    return np.float64(load(row[j]) - load(base[j]))


@inner_sum
def _dots_of_two(one: Raw, other: Raw, base: Any) -> Any:
    first, mixed, second = 0.0, 0.0, 0.0
    for j in range(one.size):
        x, y = _entry(one, base, j), _entry(other, base, j)
        first += x * x
        mixed += x * y
        second += y * y
    return first, mixed, second


@inner_sum
def _dots_with_two(row: Raw, one: Raw, other: Raw, base: Any) -> Any:
    first, second, own = 0.0, 0.0, 0.0
    for j in range(row.size):
        x, y, z = _entry(one, base, j), _entry(other, base, j), _entry(row, base, j)
        first += z * x
        second += z * y
        own += z * z
    return first, second, own


@inner_sum
def _dots_between_twos(one: Raw, other: Raw, left: Raw, right: Raw, base: Any) -> Any:
    first, second, third, fourth = 0.0, 0.0, 0.0, 0.0
    for j in range(one.size):
        x, y = _entry(one, base, j), _entry(other, base, j)
        z, w = _entry(left, base, j), _entry(right, base, j)
        first += x * z
        second += x * w
        third += y * z
        fourth += y * w
    return first, second, third, fourth


@inner
def _dots(sums: Raw, rows: Raw, base: Any, start: Any, stop: Any) -> None:
    """Of all pairs; two rows at a time with two others, as it is loading that takes time."""
    count = rows.shape[0]
    for i in range(0, count - 1, 2):
        one, other = rows[i, start:stop], rows[i + 1, start:stop]
        sums[i, i], sums[i + 1, i], sums[i + 1, i + 1] = _dots_of_two(one, other, base)
        for m in range(0, i, 2):
            found = _dots_between_twos(one, other, rows[m, start:stop], rows[m + 1, start:stop], base)
            sums[i, m], sums[i, m + 1], sums[i + 1, m], sums[i + 1, m + 1] = found
    if count % 2:
        i = count - 1
        row = rows[i, start:stop]
        if count == 1:
            sums[i, i], _, _ = _dots_of_two(row, row, base)
        for m in range(0, i, 2):
            found = _dots_with_two(row, rows[m, start:stop], rows[m + 1, start:stop], base)
            sums[i, m], sums[i, m + 1], sums[i, i] = found


@inner
def _mirror(sums: Raw) -> None:
    for i in range(sums.shape[0]):
        for other in range(i):
            sums[other, i] = sums[i, other]


def gram(base: Raw, rows: Raw, grain: int, sums: Raw) -> None:
    """Dot products of all pairs of rows, or of their deltas, per grain.

    Parameters:
        base: raw entries, shape (n,), or (0,) for zeros.
        rows: raw entries, shape (k, n).
        grain: entries.
        sums: float64, shape (grains, k, k), written.
    """
    for index in range(sums.shape[0]):
        start, stop = index * grain, min((index + 1) * grain, rows.shape[1])
        if base.size == 0:
            _dots(sums[index], rows, None, start, stop)
        else:
            _dots(sums[index], rows, base[start:stop], start, stop)
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
