"""Exact order statistics without a sort: counting entries by magnitude inside a bracket.

The magnitude of a delta is compared through its float32 bits, which order like the absolute value. One sweep counts
the entries above a bracket and sorts those inside into `BINS` bins; a bin that holds one distinct value ends the
search. Entries outside the bracket cost a vectorised comparison, so a bracket guessed from a sample makes a sweep
about as cheap as reading.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner
from mergekit.kernels.numbers import MAGNITUDE, as_bits, load, stack_array, u32

Raw = NDArray[Any]

TILE = 2048  # entries
WORD = 8  # entries that are looked at one by one only if one of them is marked
GROUP = 32  # entries that are looked at one by one only if one of them lies inside the bracket


@inner
def _own_magnitudes(bits: Raw, row: Raw) -> None:
    for j in range(bits.size):
        bits[j] = as_bits(load(row[j])) & MAGNITUDE


@inner
def _distances(bits: Raw, row: Raw, base: Raw) -> None:
    for j in range(bits.size):
        bits[j] = as_bits(load(row[j]) - load(base[j])) & MAGNITUDE


@inner
def _magnitudes(bits: Raw, row: Raw, base: Raw, start: Any) -> None:
    """Of the entries from `start` on; a base without entries stands for zeros."""
    stop = start + bits.size
    if base.size == 0:
        _own_magnitudes(bits, row[start:stop])
    else:
        _distances(bits, row[start:stop], base[start:stop])


@inner
def _count_above(bits: Raw, top: Any) -> Any:
    count = u32(0)  # of 32 bits like the magnitudes, at every step: wider ones would halve the lanes
    for j in range(bits.size):
        count = u32(count + u32(bits[j] > top))
    return count


@inner
def _compare(bits: Raw, value: Any) -> Any:
    """How many equal a value, and how many are greater; the highest bit of a difference says which is less."""
    least, above = u32(0), u32(0)
    for j in range(bits.size):
        difference = u32(value - bits[j])
        least = u32(least + (u32(difference - u32(1)) >> u32(31)))
        above = u32(above + (difference >> u32(31)))
    return u32(least - above), above


@inner
def _any_inside(bits: Raw, low: Any, width: Any) -> Any:
    found = u32(0)
    for j in range(bits.size):
        found = u32(found | u32(u32(bits[j] - low) <= width))
    return found


@inner
def _sort_into_bins(bits: Raw, low: Any, width: Any, shift: Any, bins: Raw) -> None:
    for j in range(bits.size):
        above_low = u32(bits[j] - low)
        if above_low <= width:
            place = above_low >> shift
            bins[0, place] += u32(1)
            bins[1, place] = min(bins[1, place], above_low)
            bins[2, place] = max(bins[2, place], above_low)


def sweep(row: Raw, base: Raw, low: int, high: int, shift: int, bins: Raw) -> int:
    """Sort the magnitudes of ``row − base`` that lie in [low, high] into bins of 2^shift values.

    Parameters:
        row: raw entries, shape (n,).
        base: raw entries, shape (n,), or (0,) for zeros.
        low, high: bracket, as bits of float32 magnitudes, both inclusive.
        shift: bits; (high − low) >> shift must be below `BINS`.
        bins: uint32, shape (3, `BINS`): count, least and greatest offset from `low`; added to.

    Returns:
        How many magnitudes are greater than `high`.
    """
    bottom, width, steps = u32(low), u32(high - low), u32(shift)
    tile = stack_array(2048, bins)
    above = 0
    for start in range(0, row.size, TILE):
        stop = min(start + TILE, row.size)
        bits = tile[: stop - start]
        _magnitudes(bits, row, base, start)
        above += _count_above(bits, u32(high))
        for first in range(0, bits.size, GROUP):
            group = bits[first : min(first + GROUP, bits.size)]
            if _any_inside(group, bottom, width):
                _sort_into_bins(group, bottom, width, steps, bins)
    return above


@inner
def _mark_inside(marks: Raw, bits: Raw, low: Any, width: Any) -> None:
    for j in range(bits.size):
        marks[j] = u32(bits[j] - low) <= width


@inner
def _sum(marks: Raw) -> Any:
    count = u32(0)
    for j in range(marks.size):
        count = u32(count + u32(marks[j]))
    return count


def collect(bits: Raw, low: int, high: int, first: int, found: Raw, places: Raw, counts: Raw) -> None:
    """Copy what lies in [low, high], and count what is greater.

    Parameters:
        bits: uint32, shape (n,).
        low, high: bracket, both inclusive.
        first: index in the tensor of the first entry.
        found: uint32, shape (m,), written: those inside, in their order; not all of them if there are more than m.
        places: int64, shape (m,) or (0,), written: their indices in the tensor.
        counts: int64, shape (2,), written: how many are inside, and how many greater.
    """
    words = stack_array(256, counts)  # of `WORD` marks: TILE of them
    inside, above = 0, 0
    for start in range(0, bits.size, TILE):
        tile = bits[start : min(start + TILE, bits.size)]
        words[:] = 0
        marks = words.view(np.uint8)
        above += _count_above(tile, u32(high))
        _mark_inside(marks, tile, u32(low), u32(high - low))
        count = _sum(marks)
        if inside + count <= found.size:
            for word in range(words.size):
                if words[word] == 0:
                    continue
                for j in range(WORD * word, WORD * word + WORD):
                    if marks[j] == 0:
                        continue
                    found[inside] = tile[j]
                    if places.size > 0:
                        places[inside] = first + start + j
                    inside += 1
        else:
            inside += count
    counts[0] = inside
    counts[1] = above


def count_values(row: Raw, base: Raw, values: Raw, grain: int, equal: Raw, above: Raw) -> None:
    """How many magnitudes of ``row − base`` equal each of a few values, per grain, and how many are greater.

    Parameters:
        row: raw entries, shape (n,).
        base: raw entries, shape (n,), or (0,) for zeros.
        values: uint32, shape (m,): bits of float32 magnitudes.
        grain: entries.
        equal: int32, shape (grains, m), written.
        above: int64, shape (m,), added to.
    """
    tile = stack_array(2048, values)
    for index in range(equal.shape[0]):
        equal[index] = 0
        last = min((index + 1) * grain, row.size)
        for start in range(index * grain, last, TILE):
            bits = tile[: min(TILE, last - start)]
            _magnitudes(bits, row, base, start)
            for place in range(values.size):
                same, greater = _compare(bits, values[place])
                equal[index, place] += same
                above[place] += greater


def magnitude_bits(row: Raw, base: Raw, bits: Raw) -> None:
    """Bits of the magnitudes of ``row − base``, as uint32."""
    _magnitudes(bits, row, base, 0)
