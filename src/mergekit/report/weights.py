"""Weights read once more, in small buffers on all cores: norms, checksums, and whether they are numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Files, Stored
from mergekit.errors import CheckpointError, Problem
from mergekit.kernels import GRAIN, RAW
from mergekit.plan.tensors import MERGEABLE
from mergekit.plan.views import StoredView, View, view_of
from mergekit.report.rooms import Room

Raw = NDArray[Any]

_STRIPE = 64 * GRAIN  # entries in memory at a time, for each thread; they stay in its cache
_SPAN = 64 * _STRIPE  # entries of a tensor that a thread takes at once


@dataclass(frozen=True, slots=True)
class Weight:
    """What the bytes of a tensor amount to.

    Parameters:
        norm: Euclidean norm of the entries that are finite; 0 where they are not floating-point numbers.
        broken: entries that are infinite or not a number.
        checksum: see :mod:`mergekit.kernels.checksum`; of no meaning where entries are unpacked before they are seen.
    """

    norm: float
    broken: int
    checksum: int


@dataclass(frozen=True, slots=True)
class _Part:
    squares: Raw
    broken: int
    checksum: int


def weigh_all(files: Files, tensors: Sequence[Stored]) -> Iterator[tuple[Stored, Weight | Problem]]:
    """Weigh tensors, in their order; what cannot be read is a problem.

    Threads share large tensors: norms are added up exactly, so that this does not matter to them.

    Parameters:
        files: where they are read from.
        tensors: of any dtype.
    """
    views = [view_of(stored) for stored in tensors]
    spans = [
        (index, start, min(start + _SPAN, view.spec.count))
        for index, view in enumerate(views)
        for start in range(0, max(1, view.spec.count), _SPAN)
    ]
    room = Room(files)

    def weighed(span: tuple[int, int, int]) -> tuple[int, _Part | Problem]:
        index, start, stop = span
        room.turn_to(index)
        try:
            return index, _weigh(views[index], room, start, stop)
        except CheckpointError as error:
            return index, error.problem

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for index, group in groupby(pool.map(weighed, spans), key=lambda found: found[0]):
            yield tensors[index], _joined([part for _, part in group])


def _joined(parts: Sequence[_Part | Problem]) -> Weight | Problem:
    known = [part for part in parts if isinstance(part, _Part)]
    for part in parts:
        if isinstance(part, Problem):
            return part
    norm = math.sqrt(math.fsum(square for part in known for square in part.squares))
    return Weight(norm, sum(part.broken for part in known), sum(part.checksum for part in known) % 2**64)


def _weigh(view: View, room: Room, start: int, stop: int) -> _Part:
    from mergekit.kernels.fused import checksum

    squares, broken, total = [np.zeros(0)], 0, 0
    measured = view.spec.dtype.name in MERGEABLE
    for first in range(start, stop, _STRIPE):
        if not measured and not isinstance(view, StoredView):
            break  # whole numbers of a pickle that are in another order: nothing is claimed about them
        octets = entries = _entries(view, room, first, min(first + _STRIPE, stop))
        if isinstance(view, StoredView):
            total += int(checksum(octets, first * view.spec.dtype.bits // 8))
            entries = octets.view(RAW.get(view.spec.dtype.name, view.spec.dtype.storage)) if measured else octets
        if measured:
            sums, found = _measured(entries)
            squares.append(sums)
            broken += found
    return _Part(np.concatenate(squares), broken, total)


def _entries(view: View, room: Room, start: int, stop: int) -> Raw:
    """Bytes as they are stored, or float32 where they are unpacked."""
    if isinstance(view, StoredView):
        octets = room.buffer("bytes", (stop - start) * view.spec.dtype.bits // 8)
        view.read_bytes(room, start, stop, octets)
        return octets
    row = room.buffer("row", (stop - start) * 4).view(np.float32)
    view.read(room, start, stop, row)
    return row


def _measured(entries: Raw) -> tuple[Raw, int]:
    """Squared norms by grain, and how many entries are no finite numbers; F64 in the precision of the engine."""
    from mergekit.kernels.fused import measure

    with np.errstate(over="ignore"):
        row = entries.astype(np.float32) if entries.dtype == np.float64 else entries
    sums = np.empty((-(-row.size // GRAIN), 3))
    broken = measure(row, row, GRAIN, sums)
    return sums[:, 0].copy(), broken if row is entries else int(np.count_nonzero(~np.isfinite(entries)))
