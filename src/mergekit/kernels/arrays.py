"""Twins of the fused reduction kernels for float32 arrays of any library: NumPy, or torch on any device.

Same names, same arguments, same results; the outputs (`sums`, `bins`, `counts`, `bits`) are NumPy arrays on the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import BINS, GRAIN

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
    return (row - base).view(xp.int32) & _MAGNITUDE


def _grain_slices(entries: int) -> list[slice]:
    return [slice(start, min(start + GRAIN, entries)) for start in range(0, entries, GRAIN)]


def gram(rows: Array, sums: Host) -> None:
    """Dot products of all pairs of rows, per grain; see :func:`mergekit.kernels.sums.gram`."""
    xp = _namespace(rows)
    for grain, part in enumerate(_grain_slices(rows.shape[1])):
        wide = xp.astype(rows[:, part], xp.float64)
        sums[grain] = host(wide @ wide.T)


def gram_deltas(base: Array, rows: Array, sums: Host) -> None:
    """Dot products of all pairs of deltas, per grain; see :func:`mergekit.kernels.sums.gram_deltas`."""
    gram(rows - base, sums)


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


def count_values(row: Array, base: Array, values: Host, equal: Host, above: Host) -> None:
    """Count magnitudes that equal a few values or exceed them; see :func:`mergekit.kernels.select.count_values`."""
    bits = host(_bits(row, base))
    for place, value in enumerate(values.astype(np.int64)):
        same = bits == value
        above[place] += int((bits > value).sum())
        for grain, part in enumerate(_grain_slices(len(bits))):
            equal[grain, place] = int(same[part].sum())


def magnitude_bits(row: Array, base: Array, bits: Host) -> None:
    """Bits of the magnitudes of the deltas; see :func:`mergekit.kernels.select.magnitude_bits`."""
    bits[:] = host(_bits(row, base))


def masses(row: Array, base: Array, cut: int, edge: int, sums: Host) -> None:
    """Sums of magnitudes before and after trimming, per grain; see :func:`mergekit.kernels.elect.masses`."""
    xp = _namespace(row)
    mass = xp.astype(abs(row - base), xp.float64)
    kept = mass * passing(_bits(row, base), cut, edge)
    for grain, part in enumerate(_grain_slices(row.shape[0])):
        sums[grain, 0] = float(mass[part].sum())
        sums[grain, 1] = float(kept[part].sum())


def passing(bits: Array, cut: int, edge: int) -> Array:
    """Whether each magnitude is kept: greater than the cut, or equal to it and at or before the edge."""
    kept = bits > cut if cut <= _MAGNITUDE else bits < 0
    last = max(-1, min(edge, bits.shape[0] - 1))
    kept[: last + 1] |= bits[: last + 1] == cut
    return kept


def trim(deltas: Array, cuts: Host, edges: Host) -> Array:
    """Deltas whose magnitude passes its row's cut, 0 elsewhere; shape (k, n) each."""
    xp = _namespace(deltas)
    bits = deltas.view(xp.int32) & _MAGNITUDE
    kept = [passing(bits[i], int(cuts[i]), int(edges[i])) for i in range(deltas.shape[0])]
    return xp.where(xp.stack(kept), deltas, xp.zeros_like(deltas))


def fresh_bins() -> Host:
    """Bins for :func:`sweep`: counts 0, least offsets at the top, greatest at the bottom."""
    bins = np.zeros((3, BINS), np.uint32)
    bins[1] = np.iinfo(np.uint32).max
    return bins
