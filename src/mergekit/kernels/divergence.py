"""How far apart two rows are as distributions, and what follows for their entries: the kernels of Arcee fusion.

Exponentials and logarithms are polynomials of our own: calls of the C library would not be vectorised, and differ
between machines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner, inner_sum
from mergekit.kernels.numbers import as_bits, as_double, as_float, as_long, f32, load, stack_array, store

Raw = NDArray[Any]

TILE = 8192  # entries; rows up to this length are exponentiated once
_LOWEST = -80.0  # logarithm below which a share of a distribution vanishes beside _FLOOR
_FLOOR = 1e-8  # added to every share
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fefa3800p-1"), float.fromhex("0x1.ef35793c76730p-45")
_TO_INTEGER = 1.5 * 2.0**52  # added to a number, it leaves the nearest integer in the lowest bits
_EXPONENT = 52
_HALF = 1 << 51
_EXPONENTS = -1 << 52


@inner
def _exp(x: Any) -> Any:
    """e^x for x ≤ 0, as if x were at least −80."""
    x = _LOWEST if x < _LOWEST else x  # not a number stays so
    shifted = x * _LOG2_E + _TO_INTEGER
    whole = shifted - _TO_INTEGER
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW  # |r| ≤ ln 2 / 2
    tail = 2.5100460410171186e-08
    tail = tail * r + 2.762009094930782e-07
    tail = tail * r + 2.755726823319402e-06
    tail = tail * r + 2.4801521289398903e-05
    tail = tail * r + 0.0001984126986329083
    tail = tail * r + 0.0013888888917219424
    tail = tail * r + 0.008333333333329964
    tail = tail * r + 0.04166666666662411
    tail = tail * r + 0.16666666666666669
    tail = tail * r + 0.5000000000000001
    return ((tail * r) * r + r + 1.0) * as_double((as_long(shifted) + 1023) << _EXPONENT)


@inner
def _surplus(p: Any, q: Any) -> Any:
    """``p · ln(p/q) − p + q``, which is never negative, to full precision also where p and q are nearly equal."""
    scale = (as_long(p) - as_long(q) + _HALF) & _EXPONENTS  # power of two between q and p, in the exponent's bits
    near = as_double(as_long(q) + scale)  # p/near lies between 2/3 and 3/2
    total = p + near
    s = (p - near) / total  # ln(p/near) = 2 artanh s
    w = s * s
    tail = 0.06852304294452824
    tail = tail * w + 0.06598484176919392
    tail = tail * w + 0.07694765492770728
    tail = tail * w + 0.09090860313664825
    tail = tail * w + 0.11111111635081046
    tail = tail * w + 0.1428571428295578
    tail = tail * w + 0.20000000000005524
    tail = tail * w + 0.3333333333333333
    close = total * w * ((1.0 + s) * s * tail + 1.0)
    return close + (p * (np.float64(scale >> _EXPONENT) * 0.6931471805599453) + (q - near))


@inner
def _ordered(bits: Any) -> Any:
    """Bits of a float32 as an integer that orders like the number, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@inner
def _greatest(row: Raw) -> Any:
    top = np.int32(-0x7FFFFFFF)
    for j in range(row.size):
        top = max(top, np.int32(_ordered(np.int32(as_bits(load(row[j]))))))
    return as_float(np.uint32(_ordered(top)))


@inner
def _exponentials(tile: Raw, row: Raw, top: Any) -> None:
    for j in range(tile.size):
        tile[j] = _exp(np.float64(load(row[j])) - top)


@inner_sum
def _sum(tile: Raw) -> Any:
    total = 0.0
    for j in range(tile.size):
        total += tile[j]
    return total


@inner_sum
def _sum_surplus(own: Raw, other: Raw, own_share: Any, other_share: Any) -> Any:
    total = 0.0
    for j in range(own.size):
        total += _surplus(own[j] * own_share + _FLOOR, other[j] * other_share + _FLOOR)
    return total


def row_divergence(row: Raw, base: Raw, width: int, out: Raw) -> None:
    """Kullback-Leibler divergence of rows of entries, each taken as logits.

    ``out = Σ_j P_j ln(P_j / Q_j)`` with ``P = softmax(row) + 1e-8`` and ``Q = softmax(base) + 1e-8`` over the entries
    of a row; in float64, of full relative precision where P and Q are nearly equal too, and 0 where they are equal.

    Parameters:
        row, base: raw entries, whole rows, shape (rows · width,).
        width: entries of a row, at least 1.
        out: float64, shape (rows,), written.
    """
    room, more = stack_array(8192, out), stack_array(8192, out)  # TILE, spelled out: sizes must be literals
    for index in range(out.size):
        first, last = index * width, (index + 1) * width
        top, base_top = np.float64(_greatest(row[first:last])), np.float64(_greatest(base[first:last]))
        total, base_total, divergence = 0.0, 0.0, 0.0
        for start in range(first, last, TILE):
            stop = min(start + TILE, last)
            own, other = room[: stop - start], more[: stop - start]
            _exponentials(own, row[start:stop], top)
            _exponentials(other, base[start:stop], base_top)
            total += _sum(own)
            base_total += _sum(other)
        for start in range(first, last, TILE):
            stop = min(start + TILE, last)
            own, other = room[: stop - start], more[: stop - start]
            if width > TILE:  # else they are still there
                _exponentials(own, row[start:stop], top)
                _exponentials(other, base[start:stop], base_top)
            divergence += _sum_surplus(own, other, 1.0 / total, 1.0 / base_total)
        out[index] = divergence


@inner
def _importance(scores: Raw, row: Raw, base: Raw, factor: Any) -> None:
    for j in range(scores.size):
        scores[j] = np.float32(np.float64(abs(load(row[j]) - load(base[j]))) * factor)


def importance(row: Raw, base: Raw, width: int, divergences: Raw, scores: Raw) -> None:
    """Importance of the entries of rows: ``|row − base|`` times the divergence of the row.

    Parameters:
        row, base: raw entries, whole rows, shape (rows · width,).
        width: entries of a row, at least 1.
        divergences: float64, shape (rows,).
        scores: float32, shape (rows · width,), written.
    """
    for index in range(divergences.size):
        first, last = index * width, (index + 1) * width
        _importance(scores[first:last], row[first:last], base[first:last], divergences[index])


@inner
def _replace(out: Raw, row: Raw, base: Raw, factor: Any, threshold: Any) -> None:
    for j in range(out.size):
        origin, entry = load(base[j]), load(row[j])
        delta = entry - origin
        score = np.float32(np.float64(abs(delta)) * factor)
        broken = delta - delta  # no number where one of them is none, which must not be passed over; 0 elsewhere
        unchanged = origin if broken == 0 else broken
        out[j] = store(entry if score >= threshold else unchanged, out[j])


def replace_important(row: Raw, base: Raw, width: int, divergences: Raw, threshold: float, out: Raw) -> None:
    """The row where its importance reaches a threshold, the base elsewhere.

    Parameters:
        row, base, width, divergences: as in :func:`importance`.
        threshold: compared as a float32.
        out: raw entries, shape (rows · width,).
    """
    for index in range(divergences.size):
        first, last = index * width, (index + 1) * width
        least = f32(threshold)
        _replace(out[first:last], row[first:last], base[first:last], divergences[index], least)
