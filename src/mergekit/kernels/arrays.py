"""Twins of the fused reduction kernels for float32 arrays of any library: NumPy, or torch on any device.

Same names, same arguments, same results; the outputs (`sums`, `bins`, `counts`, `bits`) are NumPy arrays on the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import BINS

Array = Any
Host = NDArray[Any]

_MAGNITUDE = 0x7FFFFFFF


def host(array: Array) -> Host:
    """The array as a NumPy array in this process's memory."""
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def _namespace(array: Array) -> Any:
    from array_api_compat import array_namespace

    return array_namespace(array)


def _bits(row: Array, base: Array) -> Array:
    """Magnitudes of the deltas as int32: the sign bit is gone, so they order like uint32."""
    xp = _namespace(row)
    return (row - base if base.shape[0] else row).view(xp.int32) & _MAGNITUDE


def grain_slices(entries: int, grain: int) -> list[slice]:
    """The grains of a block."""
    return [slice(start, min(start + grain, entries)) for start in range(0, entries, grain)]


def gram(base: Array, rows: Array, grain: int, sums: Host) -> None:
    """Dot products of all pairs of rows, or of their deltas, per grain; see :func:`mergekit.kernels.sums.gram`."""
    xp = _namespace(rows)
    rows = rows - base if base.shape[0] else rows
    # Each grain in memory of its own: products may depend on how far apart the rows lie.
    wide = [xp.astype(rows[:, part], xp.float64) for part in grain_slices(rows.shape[1], grain)]
    parts = [each @ each.T for each in wide]
    if parts:
        sums[:] = host(xp.stack(parts))


def column_gram(base: Array, rows: Array, grain: int, sums: Host) -> None:
    """Dot products of all pairs of columns, per grain; see :func:`mergekit.kernels.sums.column_gram`."""
    xp = _namespace(rows)
    count, width = rows.shape[0], sums.shape[2]
    wide = xp.astype(rows - base if base.shape[0] else rows, xp.float64)
    found = []
    for part in grain_slices(rows.shape[1], grain):
        lines = xp.reshape(wide[:, part], (count, -1, width))
        found += [xp.sum(lines[i] * lines[other], axis=0) for i in range(count) for other in range(i + 1)]
    if found:
        sums[:] = host(xp.stack(found)).reshape(sums.shape)


def beside(numbers: Host, array: Array) -> Array:
    """Numbers of the host as float32, of the library and on the device of an array."""
    xp = _namespace(array)
    return xp.asarray(numbers.astype(np.float32), **_placed(xp, array))


def sweep(row: Array, base: Array, low: int, high: int, shift: int, bins: Host) -> int:
    """Count magnitudes above and inside a bracket; see :func:`mergekit.kernels.select.sweep`."""
    bits = _bits(row, base)
    offsets = bits[(bits >= low) & (bits <= high)] - low
    values, counts = np.unique(host(offsets), return_counts=True)
    places = values >> shift
    np.add.at(bins[0], places, counts.astype(np.uint32))
    np.minimum.at(bins[1], places, values.astype(np.uint32))
    np.maximum.at(bins[2], places, values.astype(np.uint32))
    return int((bits > high).sum())


def count_values(row: Array, base: Array, values: Host, grain: int, equal: Host, above: Host) -> None:
    """Count magnitudes that equal a few values or exceed them; see :func:`mergekit.kernels.select.count_values`."""
    xp = _namespace(row)
    bits = _bits(row, base)
    found = []
    for value in values.astype(np.int64).tolist():
        found += [
            xp.sum(xp.astype(bits > value, xp.int32), axis=0, keepdims=True),
            *_grain_counts(xp, bits == value, grain),
        ]
    if found:  # one copy to the host for all of them
        counts = host(xp.concat(found)).reshape(len(values), -1)
        above += counts[:, 0]
        equal[:] = counts[:, 1:].T


def _grain_counts(xp: Any, flags: Array, grain: int) -> list[Array]:
    """How many flags of each grain are set: of the whole grains, and of what is left."""
    whole = flags.shape[0] // grain * grain
    parts = (xp.reshape(flags[:whole], (-1, grain)), xp.reshape(flags[whole:], (1, -1)))
    return [xp.sum(xp.astype(part, xp.int32), axis=1) for part in parts if part.shape[0] and part.shape[1]]


def magnitude_bits(row: Array, base: Array, bits: Host) -> None:
    """Bits of the magnitudes of the deltas; see :func:`mergekit.kernels.select.magnitude_bits`."""
    bits[:] = host(_bits(row, base))


def norms(votes: Array, row: Array, base: Array, grain: int, sums: Host) -> None:
    """Norms of a delta and of what is kept of it, per grain; see :func:`mergekit.kernels.delta_sum.norms`."""
    xp = _namespace(row)
    found = []
    for part in grain_slices(row.shape[0], grain):
        sides = [abs(xp.astype(entries[part], xp.float64)) for entries in (row - base, votes)]
        found += [xp.sum(wide) for wide in sides]
        found += [xp.sum(wide * wide) for wide in sides]
        found += [xp.max(wide) for wide in sides]
    if found:
        sums[:] = host(xp.stack(found)).reshape(sums.shape)


def overlaps(base: Array, rows: Array, threshold: float, counts: Host) -> None:
    """Count what each model changed alone, and together with others; see :func:`mergekit.kernels.overlap.overlaps`."""
    changed = host(~(abs(rows - base) <= threshold))
    models = changed.sum(axis=0)
    counts[:, 0] = (changed & (models == 1)).sum(axis=1)
    counts[:, 1] = (changed & (models > 1)).sum(axis=1)


def _spread(rows: Array) -> Array:
    """Scores of entries, on the device; see :mod:`mergekit.kernels.spread`."""
    xp = _namespace(rows)
    sums = xp.zeros_like(xp.astype(rows[0], xp.float64))
    squares = xp.zeros_like(sums)
    for row in rows[1:]:
        difference = xp.astype(row - rows[0], xp.float64)
        sums = sums + difference
        squares = squares + difference * difference
    return xp.astype(rows.shape[0] * squares - sums * sums, xp.float32)


def spread(rows: Array, scores: Host) -> int:
    """How much models differ at each entry; see :func:`mergekit.kernels.spread.spread`."""
    scores[:] = host(_spread(rows))
    return int(np.count_nonzero(scores))


def selected(rows: Array, cut: int, edge: int) -> Array:
    """Which entries are kept by their score; see :func:`mergekit.kernels.spread.spread_energies`."""
    xp = _namespace(rows)
    if cut == 0:
        return xp.ones_like(rows[0], dtype=xp.bool)
    return passing(_spread(rows).view(xp.int32) & _MAGNITUDE, cut, edge)


def spread_energies(base: Array, rows: Array, cut: int, edge: int, grain: int, sums: Host) -> None:
    """Sums of squares of what is kept of deltas; see :func:`mergekit.kernels.spread.spread_energies`."""
    xp = _namespace(rows)
    deltas = xp.astype(xp.where(selected(rows, cut, edge), rows - base, xp.zeros_like(rows)), xp.float64)
    found = [xp.sum(deltas[:, part] * deltas[:, part], axis=1) for part in grain_slices(rows.shape[1], grain)]
    if found:
        sums[:] = host(xp.stack(found))


def row_divergence(row: Array, base: Array, width: int, out: Host) -> None:
    """Divergence of rows from those of the base; see :func:`mergekit.kernels.divergence.row_divergence`."""
    xp = _namespace(row)
    p, q = (_shares(xp, xp.astype(entries.reshape(-1, width), xp.float64)) for entries in (row, base))
    apart = (q - p) / p
    out[:] = host((p * (apart - xp.log1p(apart))).sum(1))


def _shares(xp: Any, rows: Array) -> Array:
    powers = xp.exp(rows - xp.max(rows, axis=1, keepdims=True))
    return powers / xp.sum(powers, axis=1, keepdims=True) + 1e-8


def importances(row: Array, base: Array, width: int, divergences: Host) -> Array:
    """Importances of entries, on the device; see :func:`mergekit.kernels.divergence.importance`."""
    xp = _namespace(row)
    factors = xp.asarray(divergences, **_placed(xp, row))[:, None]
    distances = xp.astype(abs(row - base), xp.float64).reshape(-1, width)
    return xp.astype(distances * factors, xp.float32).reshape(-1)


def importance(row: Array, base: Array, width: int, divergences: Host, scores: Host) -> None:
    """Importances of entries; see :func:`mergekit.kernels.divergence.importance`."""
    scores[:] = host(importances(row, base, width, divergences))


def passing(bits: Array, cut: int, edge: int) -> Array:
    """Whether each magnitude is kept: greater than the cut, or equal to it and at or before the edge."""
    kept = bits > cut if cut <= _MAGNITUDE else bits < 0
    last = max(-1, min(edge, bits.shape[0] - 1))
    kept[: last + 1] |= bits[: last + 1] == cut
    return kept


def trim(delta: Array, cuts: Host, edges: Host) -> Array:
    """A delta where its magnitude passes the first cut and not the second, 0 elsewhere (no number where it is none)."""
    xp = _namespace(delta)
    bits = delta.view(xp.int32) & _MAGNITUDE
    within = xp.where(passing(bits, int(cuts[1]), int(edges[1])), delta - delta, delta)
    return xp.where(passing(bits, int(cuts[0]), int(edges[0])), within, xp.zeros_like(delta))


def noise(like: Array, start: int, keys: Host) -> Array:
    """Noise of the entries from `start` on, int32 of the library and the shape of `like`; see :mod:`.noise`.

    Numbers are int32 because few libraries compute with uint32; multiplication wraps around alike.
    """
    xp = _namespace(like)
    border = ((start >> 32) + 1) << 32
    if start + like.shape[0] > border:
        head = border - start
        return xp.concat([noise(like[:head], start, keys), noise(like[head:], border, keys)])
    first, second, third = (int(key) for key in keys)
    second += (start >> 32) * 0x9E3779B9
    x = xp.arange(like.shape[0], dtype=xp.int32, **_placed(xp, like)) + _wrapped(start + first)
    for shift, factor, key in ((17, 0xED5AD4BB, second), (11, 0xAC4C1B51, third), (15, 0x31848BAB, 0)):
        x = (x ^ _shifted(x, shift)) * _wrapped(factor) + _wrapped(key)
    return _shifted(x ^ _shifted(x, 14), 1)


def _placed(xp: Any, like: Array) -> dict[str, Any]:
    """Where an array is, for libraries with several devices."""
    from array_api_compat import device, is_numpy_namespace

    return {} if is_numpy_namespace(xp) else {"device": device(like)}


def _wrapped(number: int) -> int:
    """An integer modulo 2³², as int32."""
    return np.uint32(number & 0xFFFFFFFF).astype(np.int32).item()


def _shifted(x: Array, count: int) -> Array:
    """Bits moved to the right, zeros moved in."""
    return (x >> count) & ((1 << (32 - count)) - 1)


def row_ranks(row: Array, base: Array, width: int, scratch: Host, ranks: Host) -> None:  # noqa: ARG001
    """Doubled ranks of magnitudes within rows; see :func:`mergekit.kernels.ranks.row_ranks`."""
    for index, magnitudes in enumerate(host(_bits(row, base)).reshape(-1, width)):
        _, value, counts = np.unique(magnitudes, return_inverse=True, return_counts=True)
        ranks[index * width : (index + 1) * width] = (2 * np.cumsum(counts) - counts - 1)[value]


def rank_scratch(width: int) -> int:
    """How many entries of scratch :func:`row_ranks` needs for rows of this width.

    Example:
        >>> rank_scratch(4096)
        37120
    """
    return 9 * width + 256


def fresh_bins() -> Host:
    """Bins for :func:`sweep`: counts 0, least offsets at the top, greatest at the bottom."""
    bins = np.zeros((3, BINS), np.uint32)
    bins[1] = np.iinfo(np.uint32).max
    return bins
