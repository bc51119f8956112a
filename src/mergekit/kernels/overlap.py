"""Sums of deltas by how many models changed an entry: the kernels of reinforced agent merging."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner
from mergekit.kernels.numbers import f32, load, stack_array, store, u32

Raw = NDArray[Any]

TILE = 1024  # entries; a few tiles stay in the first-level cache
_WORD = np.zeros(1, np.uint32)  # type of entries of a tile


@inner
def _clear(tile: Raw) -> None:
    for j in range(tile.size):
        tile[j] = 0


@inner
def _add_changes(total: Raw, scaled: Raw, changed: Raw, row: Raw, base: Raw, factor: Any, threshold: Any) -> None:
    for j in range(total.size):
        delta = load(row[j]) - load(base[j])
        kept = not (abs(delta) <= threshold)  # where there is no number, it must stay so
        change = delta if kept else f32(0)
        total[j] += change
        scaled[j] += factor * change
        changed[j] += f32(1) if kept else f32(0)


@inner
def _finish(out: Raw, base: Raw, total: Raw, scaled: Raw, changed: Raw) -> None:
    for j in range(out.size):
        shared = changed[j] > f32(1)
        divisor = changed[j] if shared else f32(1)
        change = (total[j] if shared else scaled[j]) / divisor
        out[j] = store(load(base[j]) + change, out[j])


def overlap_mean(base: Raw, rows: Raw, factors: Raw, threshold: float, out: Raw) -> None:
    """Average each entry over the models that changed it, scaling what only one changed.

    With ``c`` models whose ``|rows[i] − base|`` exceeds the threshold: ``out = base + factors[i] · (rows[i] − base)``
    where only the model i does (c = 1), ``base + Σ (rows[i] − base) / c`` over those that do where c > 1.

    Parameters:
        base, out: raw entries, shape (n,).
        rows: raw entries, shape (k, n).
        factors: float32, shape (k,).
        threshold: at least 0; compared as a float32.
    """
    totals, products, counts = stack_array(1024, factors), stack_array(1024, factors), stack_array(1024, factors)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        total, scaled, changed = totals[: stop - start], products[: stop - start], counts[: stop - start]
        _clear(total)
        _clear(scaled)
        _clear(changed)
        for i in range(rows.shape[0]):
            _add_changes(total, scaled, changed, rows[i, start:stop], base[start:stop], factors[i], f32(threshold))
        _finish(out[start:stop], base[start:stop], total, scaled, changed)


@inner
def _note_changes(changed: Raw, last: Raw, row: Raw, base: Raw, place: Any, threshold: Any) -> Any:
    count = u32(0)
    for j in range(changed.size):
        kept = u32(not (abs(load(row[j]) - load(base[j])) <= threshold))
        changed[j] = u32(changed[j] + kept)
        last[j] = u32(last[j] + (place if kept else u32(0)))
        count = u32(count + kept)
    return count


@inner
def _count_alone(changed: Raw, last: Raw, place: Any) -> Any:
    count = u32(0)
    for j in range(changed.size):
        count = u32(count + u32(u32(changed[j] == u32(1)) & u32(last[j] == place)))
    return count


def overlaps(base: Raw, rows: Raw, threshold: float, counts: Raw) -> None:
    """How many entries each model changed alone, and how many together with others.

    Parameters:
        base: raw entries, shape (n,).
        rows: raw entries, shape (k, n).
        threshold: change that counts as none, as in :func:`overlap_mean`.
        counts: float64, shape (k, 2): alone and shared, written.
    """
    ones, places = stack_array(1024, _WORD), stack_array(1024, _WORD)
    for i in range(rows.shape[0]):
        counts[i, 0] = 0
        counts[i, 1] = 0
    for start in range(0, base.size, TILE):
        stop = min(start + TILE, base.size)
        changed, last = ones[: stop - start], places[: stop - start]
        _clear(changed)
        _clear(last)
        for i in range(rows.shape[0]):
            place = u32(i + 1)
            counts[i, 1] += _note_changes(changed, last, rows[i, start:stop], base[start:stop], place, f32(threshold))
        for i in range(rows.shape[0]):
            alone = _count_alone(changed, last, u32(i + 1))
            counts[i, 0] += alone
            counts[i, 1] -= alone
