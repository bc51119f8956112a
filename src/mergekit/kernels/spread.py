"""Entries on which models differ most, and their weighted mean under a majority sign: the kernels of SCE.

The score of an entry is ``k · Σ e_i² − (Σ e_i)²`` with ``e_i = x_i − x_0`` over k models: k² times the variance. It is
computed in float64 from differences of float32, so that it is 0 where all models agree, nowhere else (unless they
differ by less than 10⁻²²), and equal where differences are equal; it is then rounded to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner, inner_sum
from mergekit.kernels.delta_sum import least_passing, mark_negative
from mergekit.kernels.numbers import as_bits, as_float, f32, load, stack_array, store, u32

Raw = NDArray[Any]

TILE = 1024  # entries; a few tiles stay in the first-level cache
_SINGLE = np.zeros(1, np.float32)  # entries of a tile
_DOUBLE = np.zeros(1, np.float64)
_WORD = np.zeros(1, np.uint32)


@inner
def _clear(tile: Raw) -> None:
    for j in range(tile.size):
        tile[j] = 0


@inner
def _first_difference(sums: Raw, squares: Raw, row: Raw, first: Raw) -> None:
    for j in range(sums.size):
        difference = np.float64(load(row[j]) - load(first[j]))
        sums[j] = difference
        squares[j] = difference * difference


@inner
def _add_difference(sums: Raw, squares: Raw, row: Raw, first: Raw) -> None:
    for j in range(sums.size):
        difference = np.float64(load(row[j]) - load(first[j]))
        sums[j] += difference
        squares[j] += difference * difference


@inner
def _score(scores: Raw, sums: Raw, squares: Raw, row: Raw, first: Raw, count: Any) -> None:
    """Add the last difference, and bring all together."""
    for j in range(scores.size):
        difference = np.float64(load(row[j]) - load(first[j]))
        total = sums[j] + difference
        scores[j] = np.float32(count * (squares[j] + difference * difference) - total * total)


@inner
def _score_two(scores: Raw, row: Raw, first: Raw) -> None:
    for j in range(scores.size):
        difference = np.float64(load(row[j]) - load(first[j]))
        scores[j] = np.float32(difference * difference)


@inner
def _score_three(scores: Raw, row: Raw, other: Raw, first: Raw) -> None:
    """The same as by way of sums, without storing them."""
    for j in range(scores.size):
        difference = np.float64(load(row[j]) - load(first[j]))
        last = np.float64(load(other[j]) - load(first[j]))
        total = difference + last
        scores[j] = np.float32(3.0 * (difference * difference + last * last) - total * total)


@inner
def _spread(scores: Raw, rows: Raw, start: Any) -> None:
    """Scores of at most `TILE` entries from `start` on."""
    room, more = stack_array(1024, _DOUBLE), stack_array(1024, _DOUBLE)
    sums, squares = room[: scores.size], more[: scores.size]
    stop, last = start + scores.size, rows.shape[0] - 1
    if last <= 0:
        _clear(scores)
    elif last == 1:
        _score_two(scores, rows[1, start:stop], rows[0, start:stop])
    elif last == 2:
        _score_three(scores, rows[1, start:stop], rows[2, start:stop], rows[0, start:stop])
    else:
        _first_difference(sums, squares, rows[1, start:stop], rows[0, start:stop])
        for i in range(2, last):
            _add_difference(sums, squares, rows[i, start:stop], rows[0, start:stop])
        _score(scores, sums, squares, rows[last, start:stop], rows[0, start:stop], np.float64(rows.shape[0]))


@inner
def _count(scores: Raw) -> Any:
    count = u32(0)
    for j in range(scores.size):
        count = u32(count + u32(scores[j] != 0))
    return count


def spread(rows: Raw, scores: Raw) -> int:
    """The scores of entries.

    Parameters:
        rows: raw entries of the models, shape (k, n).
        scores: float32, shape (n,), written.

    Returns:
        How many entries are not the same in all models.
    """
    differing = 0
    for start in range(0, scores.size, TILE):
        tile = scores[start : min(start + TILE, scores.size)]
        _spread(tile, rows, start)
        differing += _count(tile)
    return differing


@inner
def _keep(kept: Raw, rows: Raw, start: Any, cut: Any, edge: Any) -> None:
    """Of at most `TILE` entries, 1 where the score passes the cut and 0 elsewhere."""
    if cut == 0:
        for j in range(kept.size):
            kept[j] = f32(1)
        return
    _spread(kept, rows, start)
    if 0 <= edge - start < kept.size - 1:
        for j in range(kept.size):
            kept[j] = f32(1) if as_bits(kept[j]) >= cut + u32(j > edge - start) else f32(0)
    else:
        least = least_passing(cut, edge - start)
        for j in range(kept.size):
            kept[j] = f32(1) if as_bits(kept[j]) >= least else f32(0)


@inner_sum
def _energy(row: Raw, base: Raw, kept: Raw) -> Any:
    total = 0.0
    for j in range(row.size):
        delta = np.float64(load(row[j]) - load(base[j]))
        total += delta * delta if kept[j] != f32(0) else 0.0
    return total


def spread_energies(base: Raw, rows: Raw, cut: int, edge: int, grain: int, sums: Raw) -> None:
    """Sum of squares of each delta over the entries that are kept, per grain.

    Parameters:
        base: raw entries, shape (n,).
        rows: raw entries, shape (k, n).
        cut, edge: entries are kept whose score, as bits of a float32, exceeds the cut, or equals it up to the index
            `edge`; all are if the cut is 0.
        grain: entries.
        sums: float64, shape (grains, k), written.
    """
    room = stack_array(1024, _SINGLE)
    for index in range(sums.shape[0]):
        for i in range(rows.shape[0]):
            sums[index, i] = 0
        last = min((index + 1) * grain, base.size)
        for start in range(index * grain, last, TILE):
            stop = min(start + TILE, last)
            kept = room[: stop - start]
            _keep(kept, rows, start, u32(cut), edge)
            for i in range(rows.shape[0]):
                sums[index, i] += _energy(rows[i, start:stop], base[start:stop], kept)


@inner
def _vote(elected: Raw, row: Raw, base: Raw) -> None:
    for j in range(elected.size):
        elected[j] += load(row[j]) - load(base[j])


@inner
def _agree(total: Raw, divisor: Raw, signs: Raw, row: Raw, base: Raw, weight: Any) -> None:
    for j in range(total.size):
        delta = load(row[j]) - load(base[j])
        # True also where there is no number: a broken input must break the output.
        same = not (as_float(as_bits(delta) ^ signs[j]) <= 0)
        total[j] += weight * delta if same else f32(0)
        divisor[j] += weight if same else f32(0)


@inner
def _finish(out: Raw, base: Raw, total: Raw, divisor: Raw, kept: Raw) -> None:
    for j in range(out.size):
        mean = total[j] / (divisor[j] if divisor[j] != 0 else f32(1))
        out[j] = store(load(base[j]) + (mean if kept[j] != 0 else f32(0)), out[j])


def spread_mean(base: Raw, rows: Raw, weights: Raw, cut: int, edge: int, out: Raw) -> None:
    """Weighted mean of the deltas that agree with the sign of their sum, on the entries that are kept.

    ``out = base + Σ_agree weights[i] · (rows[i] − base) / Σ_agree weights[i]`` where the score passes the cut and
    something agrees, `base` elsewhere; a delta agrees if it has the sign of the sum of all (0 counts as +) and is not
    0.

    Parameters:
        base, out: raw entries, shape (n,).
        rows: raw entries, shape (k, n).
        weights: float32, shape (k,), at least 0.
        cut, edge: as in :func:`spread_energies`.
    """
    marks, votes = stack_array(1024, _SINGLE), stack_array(1024, _SINGLE)
    totals, divisors = stack_array(1024, _SINGLE), stack_array(1024, _SINGLE)
    negative = stack_array(1024, _WORD)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        size = stop - start
        kept, elected, total, divisor = marks[:size], votes[:size], totals[:size], divisors[:size]
        signs = negative[:size]
        _keep(kept, rows, start, u32(cut), edge)
        _clear(elected)
        _clear(total)
        _clear(divisor)
        for i in range(rows.shape[0]):
            _vote(elected, rows[i, start:stop], base[start:stop])
        mark_negative(signs, elected)
        for i in range(rows.shape[0]):
            _agree(total, divisor, signs, rows[i, start:stop], base[start:stop], weights[i])
        _finish(out[start:stop], base[start:stop], total, divisor, kept)
