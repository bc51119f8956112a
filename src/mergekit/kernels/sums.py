"""Sums over fixed grains: dot products, norms, masses.

Every sum is taken grain by grain, a grain being `GRAIN` consecutive entries of the tensor counted from its first.
Stripes hold whole grains, so the list of grain sums does not depend on how a tensor was cut or who computed what;
`math.fsum` over that list then gives one correctly rounded number, the same in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import GRAIN
from mergekit.kernels.compiling import inner_sum
from mergekit.kernels.numbers import MAGNITUDE, as_bits, load

Raw = NDArray[Any]


@inner_sum
def _dot(left: Raw, right: Raw) -> Any:
    total = 0.0
    for j in range(left.size):
        total += np.float64(load(left[j])) * np.float64(load(right[j]))
    return total


@inner_sum
def _delta_dot(left: Raw, right: Raw, base: Raw) -> Any:
    total = 0.0
    for j in range(left.size):
        origin = load(base[j])
        total += np.float64(load(left[j]) - origin) * np.float64(load(right[j]) - origin)
    return total


def gram(rows: Raw, sums: Raw) -> None:
    """Dot products of all pairs of rows, per grain.

    Parameters:
        rows: raw entries, shape (k, n).
        sums: float64, shape (grains, k, k), written.
    """
    for grain in range(sums.shape[0]):
        start = grain * GRAIN
        stop = min(start + GRAIN, rows.shape[1])
        for i in range(rows.shape[0]):
            for other in range(i + 1):
                product = _dot(rows[i, start:stop], rows[other, start:stop])
                sums[grain, i, other] = product
                sums[grain, other, i] = product


def gram_deltas(base: Raw, rows: Raw, sums: Raw) -> None:
    """Dot products of all pairs of deltas ``rows[i] − base``, per grain.

    Parameters:
        base: raw entries, shape (n,).
        rows: raw entries, shape (k, n).
        sums: float64, shape (grains, k, k), written.
    """
    for grain in range(sums.shape[0]):
        start = grain * GRAIN
        stop = min(start + GRAIN, rows.shape[1])
        for i in range(rows.shape[0]):
            for other in range(i + 1):
                product = _delta_dot(rows[i, start:stop], rows[other, start:stop], base[start:stop])
                sums[grain, i, other] = product
                sums[grain, other, i] = product


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


def measure(row: Raw, reference: Raw, sums: Raw) -> int:
    """Squared norm of a row, of its distance to a reference and of the reference, per grain.

    Grains are summed in float32; one whose sum overflows or is not a number is summed again in float64, leaving
    out entries that are not finite.

    Parameters:
        row: raw entries, shape (n,).
        reference: raw entries, shape (n,).
        sums: float64, shape (grains, 3), written.

    Returns:
        How many entries of `row` are infinite or not a number.
    """
    broken = 0
    for grain in range(sums.shape[0]):
        start = grain * GRAIN
        stop = min(start + GRAIN, row.size)
        own, apart, other = _squares(row[start:stop], reference[start:stop])
        if not np.isfinite(own + apart + other):
            own, apart, other, found = _wide_squares(row[start:stop], reference[start:stop])
            broken += found
        sums[grain, 0] = own
        sums[grain, 1] = apart
        sums[grain, 2] = other
    return broken
