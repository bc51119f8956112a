"""Exact ranks of magnitudes within rows, without a comparison sort.

A monotone function of the magnitude sorts a row's entries into about as many bins: the bits of ``magnitude + mean``,
which grow linearly below the mean and logarithmically above it, so that entries spread evenly. Ranks between bins are
running counts. Inside bins there are three ways:

- Few entries in every bin (continuous deltas): the row is put in the order of its bins, and every entry is compared
  with its next neighbours there, by vectors.
- One distinct value in a bin, however often (deltas of 16-bit models): all its entries have the same rank.
- Bins of several values among those, called mixed: their entries alone are compared with each other if they are few,
  else with neighbours, or sorted by digits if a bin is crowded, which takes a time in proportion to their number for
  any input. For entries of 16 bits there are twice as many bins, so that few are mixed.
"""

from __future__ import annotations

from typing import Any

import numba
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner, inner_sum
from mergekit.kernels.numbers import MAGNITUDE, as_bits, as_float, f32, load, stack_array, u32

Raw = NDArray[Any]

i32 = numba.int32

FEW = 12  # entries of a bin, up to which comparing all with their neighbours is faster than to look for equal ones
LISTED = 128  # entries of mixed bins that are compared with each other at most
REACH = 64  # neighbours on each side that an entry is compared with at most; beyond, sorting by digits is faster
TILE = 256  # entries whose ranks stay in the first-level cache from one neighbour to the next
BINS = 1 << 21  # at most, so that float32 arithmetic tells bins apart
EMPTY, MIXED = u32(0xFFFFFFFF), u32(0xFFFFFFFE)  # in place of a magnitude or a rank


@inner_sum
def _measure(bits: Raw, row: Raw, base: Raw) -> Any:
    """Keep the magnitudes; return their sum, roughly, and the greatest."""
    total, greatest = f32(0), u32(0)
    for j in range(bits.size):
        magnitude = as_bits(load(row[j]) - load(base[j])) & MAGNITUDE
        bits[j] = magnitude
        total += as_float(magnitude)
        greatest = max(greatest, magnitude)
    return total, greatest


@inner
def _choose_bins(places: Raw, bits: Raw, mean: Any, greatest: Any, bins: Any) -> None:
    """The bin of each entry, the places of all that follows."""
    # Any finite centre makes a monotone function, which is all that ranks depend on.
    centre = mean if mean < f32(1e38) else f32(0)
    origin = as_bits(centre)
    span = f32(i32(as_bits(as_float(greatest) + centre) - origin))
    scale = f32(bins - 2) / max(span, f32(1))
    for j in range(bits.size):
        spread = f32(i32(as_bits(as_float(bits[j]) + centre) - origin))
        places[j] = i32(spread * scale) + i32(bits[j] != u32(0))  # 0, the most frequent magnitude, has its own bin


@inner
def _clear(counts: Raw) -> None:
    for place in range(counts.size):
        counts[place] = u32(0)


@inner
def _count(counts: Raw, places: Raw) -> None:
    for j in range(places.size):
        counts[places[j]] += u32(1)


@inner
def _greatest(counts: Raw) -> Any:
    found = u32(0)
    for place in range(counts.size):
        found = max(found, counts[place])
    return found


@inner
def _accumulate(counts: Raw) -> None:
    """Turn counts into numbers of entries in earlier places."""
    before = u32(0)
    for place in range(counts.size):
        count = counts[place]
        counts[place] = before
        before = u32(before + count)


@inner
def _arrange(ordered: Raw, places: Raw, bits: Raw, starts: Raw) -> None:
    """Put magnitudes, plus 1, in the order of their bins; `places` become positions there."""
    for j in range(places.size):
        place = places[j]
        position = starts[place]
        starts[place] = u32(position + u32(1))
        ordered[REACH + position] = bits[j] + u32(1)
        places[j] = position


@inner
def _compare(found: Raw, middle: Raw, left: Raw, right: Raw) -> None:
    """Correct twice the position: by 2 for each that is on the wrong side, by 1 for each equal one."""
    for p in range(found.size):
        here = middle[p]
        before = i32(left[p] < here) - i32(left[p] > here)  # 1 if in order
        after = i32(right[p] < here) - i32(right[p] > here)  # -1 if in order
        found[p] += before + after


@inner
def _rank_neighbours(found: Raw, ordered: Raw, reach: Any) -> None:
    """Ranks by position, where entries of the same bin are at most `reach` apart."""
    for p in range(REACH):  # beyond the ends: less, or greater, than any magnitude plus 1
        ordered[p], ordered[ordered.size - 1 - p] = u32(0), u32(0xFFFFFFFF)
    for start in range(0, found.size, TILE):
        stop = min(start + TILE, found.size)
        for p in range(start, stop):
            found[p] = u32(2 * p)
        middle = ordered[REACH + start : REACH + stop]
        for step in range(1, reach + 1):
            left = ordered[REACH + start - step : REACH + stop - step]
            right = ordered[REACH + start + step : REACH + stop + step]
            _compare(found[start:stop], middle, left, right)


@inner
def _pick(ranks: Raw, found: Raw, places: Raw) -> None:
    for j in range(ranks.size):
        ranks[j] = found[places[j]]


@inner
def _find_mixed(values: Raw, places: Raw, bits: Raw) -> None:
    """The one value of each bin, or that it is mixed."""
    for place in range(values.size):
        values[place] = EMPTY
    for j in range(places.size):
        place, magnitude = places[j], bits[j]
        value = values[place]
        values[place] = magnitude if (value == magnitude) | (value == EMPTY) else MIXED


@inner
def _rank_values(values: Raw, starts: Raw) -> None:
    """Turn the values of bins that are not mixed into ranks."""
    for place in range(values.size):
        rank = u32(starts[place] + starts[place + 1] - u32(1))
        values[place] = MIXED if values[place] == MIXED else rank


@inner
def _pick_or_list(ranks: Raw, order: Raw, places: Raw, values: Raw) -> Any:
    """Ranks of entries by bin; list those of mixed bins."""
    count = u32(0)
    for j in range(places.size):
        rank = values[places[j]]
        ranks[j] = rank
        order[count] = j
        count = u32(count + u32(rank == MIXED))
    return count


@inner
def _count_mixed(values: Raw, starts: Raw) -> Any:
    """Turn the ranks of bins into numbers of entries in mixed bins; return the greatest."""
    crowd = u32(0)
    for place in range(values.size):
        count = u32(starts[place + 1] - starts[place])
        values[place] = count if values[place] == MIXED else u32(0)
        crowd = max(crowd, values[place])
    return crowd


@inner
def _sort_by_digit(target: Raw, queue: Raw, bits: Raw, shift: Any, counts: Raw) -> None:
    _clear(counts)
    for p in range(queue.size):
        counts[(bits[queue[p]] >> shift) & u32(0xFF)] += u32(1)
    _accumulate(counts)
    for p in range(queue.size):
        entry = queue[p]
        digit = (bits[entry] >> shift) & u32(0xFF)
        target[counts[digit]] = entry
        counts[digit] += u32(1)


@inner
def _rank_digits(found: Raw, bits: Raw, queue: Raw, spare: Raw) -> None:
    """Ranks of magnitudes by sorting."""
    counts = stack_array(256, bits)
    for p in range(queue.size):
        queue[p] = p
    for shift in range(0, 32, 16):
        _sort_by_digit(spare, queue, bits, u32(shift), counts)
        _sort_by_digit(queue, spare, bits, u32(shift + 8), counts)
    start = 0
    while start < queue.size:
        value, stop = bits[queue[start]], start + 1
        while stop < queue.size and bits[queue[stop]] == value:
            stop += 1
        for p in range(start, stop):
            found[queue[p]] = u32(start + stop - 1)
        start = stop


@inner
def _rank_mixed(ranks: Raw, order: Raw, places: Raw, bits: Raw, starts: Raw, values: Raw, room: Raw) -> None:
    """Ranks of the entries of mixed bins: among themselves, plus twice the others that are less."""
    count = order.size
    found, ordered = room[:count], room[count : 2 * count + 2 * REACH]
    crowd = _count_mixed(values, starts)
    _accumulate(values)
    for p in range(count):
        j = order[p]
        place = places[j]
        places[p], bits[p] = place, bits[j]
        ranks[j] = 2 * (starts[place] - values[place])  # lesser ones in bins that are not mixed
    if crowd <= REACH:
        _arrange(ordered, places[:count], bits, values)
        _rank_neighbours(found, ordered, crowd - u32(1))
        for p in range(count):
            ranks[order[p]] += i32(found[places[p]])
    else:
        _rank_digits(found, bits, places[:count], ordered[:count])
        for p in range(count):
            ranks[order[p]] += i32(found[p])


@inner
def _count_and_find_mixed(starts: Raw, values: Raw, places: Raw, bits: Raw) -> None:
    """Both counts and values of bins in one go."""
    for place in range(values.size):
        values[place] = EMPTY
    for j in range(places.size):
        place, magnitude = places[j], bits[j]
        value = values[place]
        starts[place] += u32(1)
        values[place] = magnitude if (value == magnitude) | (value == EMPTY) else MIXED


@inner
def _rank_listed(ranks: Raw, order: Raw, places: Raw, bits: Raw, starts: Raw) -> None:
    """Ranks of a few entries of mixed bins: all of them are compared with each other."""
    # LISTED, spelled out: sizes must be literals; nothing else points there, so that loops are of vectors
    bins, magnitudes, counts = stack_array(128, bits), stack_array(128, bits), stack_array(128, bits)
    own, here, found = bins[: order.size], magnitudes[: order.size], counts[: order.size]
    for p in range(order.size):
        own[p], here[p], found[p] = places[order[p]], bits[order[p]], u32(0)
    for q in range(order.size):
        place, magnitude = own[q], here[q]
        for p in range(order.size):
            less = u32(u32(magnitude < here[p]) + u32(magnitude <= here[p]))
            found[p] = u32(found[p] + (less if own[p] == place else u32(0)))
    for p in range(order.size):
        ranks[order[p]] = i32(u32(2) * starts[own[p]] + found[p] - u32(1))


@inner
def _rank_few_values(bits: Raw, places: Raw, starts: Raw, values: Raw, room: Raw, ranks: Raw) -> None:
    """Ranks of a row whose magnitudes are few numbers, many times each."""
    _clear(starts)
    _count_and_find_mixed(starts, values, places, bits)
    _accumulate(starts)
    _rank_values(values, starts)
    order = room[: _pick_or_list(ranks, room, places, values)]
    if order.size > LISTED:
        _rank_mixed(ranks, order, places, bits, starts, values, room[order.size :])
    else:
        _rank_listed(ranks, order, places, bits, starts)


@inner
def rank_row(row: Raw, base: Raw, scratch: Raw, ranks: Raw) -> None:
    """Ranks within a single row; parameters as for :func:`row_ranks`."""
    width = row.size
    bins = min(width * 2 if row.itemsize == 2 else width, BINS) + 1  # one more for 0
    bits, places, tables = scratch[:width], scratch[width : 2 * width], scratch[2 * width :]
    starts, values, room = tables[: bins + 1], tables[bins + 1 : 2 * bins + 1], tables[2 * bins + 1 :]
    total, greatest = _measure(bits, row, base)
    _choose_bins(places, bits, total / f32(width), greatest, bins)
    if row.itemsize == 2:
        _rank_few_values(bits, places, starts, values, room, ranks)
        return
    _clear(starts)
    _count(starts, places)
    crowd = _greatest(starts)
    _accumulate(starts)
    found, ordered = room[:width], room[width : 2 * width + 2 * REACH]
    if crowd <= FEW:
        _arrange(ordered, places, bits, starts)
        _rank_neighbours(found, ordered, crowd - u32(1))
        _pick(ranks, found, places)
        return
    _find_mixed(values, places, bits)
    _rank_values(values, starts)
    order = room[: _pick_or_list(ranks, room, places, values)]
    if order.size:
        _rank_mixed(ranks, order, places, bits, starts, values, room[order.size :])


def row_ranks(row: Raw, base: Raw, width: int, scratch: Raw, ranks: Raw) -> None:
    """Ranks of the magnitudes of ``row − base`` within rows, equal ones sharing the middle of their places, doubled.

    The doubled rank is twice the number of lesser magnitudes in the row, plus the number of equal ones, minus 1: a
    whole number from 0 to 2 · (width − 1). Magnitudes compare as bits, so that infinite ones, then undefined ones, are
    the greatest.

    Parameters:
        row, base: raw entries, shape (n,), n a multiple of `width`.
        width: entries of a row, 1 to 2^30.
        scratch: uint32, :func:`mergekit.kernels.arrays.rank_scratch` entries, overwritten.
        ranks: int32, shape (n,), written.
    """
    for start in range(0, row.size, width):
        stop = start + width
        rank_row(row[start:stop], base[start:stop], scratch, ranks[start:stop])
