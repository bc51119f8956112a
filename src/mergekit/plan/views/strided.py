"""Tensors whose entries are not in row-major order: transposed, expanded or cut out of others, as pickles hold them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from mergekit.checkpoint import Extent, Stored, TensorSpec
from mergekit.checkpoint.tensors import span_of
from mergekit.plan.views.base import Access, Raw, StoredView

_ROOM = 1 << 20  # bytes that are read at a time, at most
_GAP = 1 << 15  # bytes between two runs that are rather read than skipped: skipping costs a call


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular part of a tensor.

    Parameters:
        first: index of its first entry.
        shape: its dimensions.
    """

    first: tuple[int, ...]
    shape: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class Strided(StoredView):
    """One stored tensor whose entries lie apart.

    Parameters:
        spec: name, dtype and shape.
        extent: from its first entry to its last, and maybe beyond.
        strides: entries from one to the next along each dimension, none negative.
        names: the stored tensor.
    """

    spec: TensorSpec
    extent: Extent
    strides: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, stored: Stored) -> Strided:
        """The view of a stored tensor with strides."""
        assert stored.strides is not None
        return cls(stored.spec, stored.extent, stored.strides, (stored.spec.name,))

    @property
    def kept_bytes(self) -> int:
        """Room for what is read at a time."""
        return _ROOM

    def rows(self, count: int) -> Strided:
        """The first `count` rows."""
        spec = TensorSpec(self.spec.name, self.spec.dtype, (count, *self.spec.shape[1:]))
        return Strided(spec, self.extent, self.strides, self.names)

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """The bytes from the lowest of the entries [start, stop) to the highest.

        Example:
            >>> from pathlib import Path
            >>> from mergekit.checkpoint import DTYPES
            >>> transposed = Strided(TensorSpec("t", DTYPES["U8"], (4, 2)), Extent(Path("a"), 10, 18), (1, 4), ("t",))
            >>> [(extent.start, extent.stop) for extent in transposed.extents(0, 4)]
            [(10, 16)]
        """
        found = list(boxes(self.spec.shape, start, stop))
        if found:
            first = min(self._place(box) for box in found)
            last = max(self._place(box) + span_of(box.shape, self.strides) * self._size for box in found)
            yield Extent(self.extent.file, first, last)

    def read_bytes(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """Read what lies close together at once, and pick the entries out of it."""
        entries = into.view(f"u{self._size}")
        for box in boxes(self.spec.shape, start, stop):
            count = math.prod(box.shape)
            self._gather(access, self._place(box), entries[:count].reshape(box.shape))
            entries = entries[count:]

    @property
    def _size(self) -> int:
        return self.spec.dtype.bits // 8

    def _place(self, box: Box) -> int:
        entries = sum(index * stride for index, stride in zip(box.first, self.strides, strict=True))
        return self.extent.start + entries * self._size

    def _gather(self, access: Access, start: int, into: Raw) -> None:
        """Fill `into` from the byte `start` on: at once if what is read fits into the room, else in parts.

        The parts are along the dimension whose entries lie farthest apart.
        """
        steps = [stride * self._size for stride in self.strides]
        span = span_of(into.shape, self.strides) * self._size
        axis = max(range(into.ndim), key=lambda axis: steps[axis] if into.shape[axis] > 1 else 0)
        length, step = into.shape[axis], steps[axis]
        inner = span - (length - 1) * step
        together = 1 if step - inner > _GAP else max(1, (_ROOM - inner) // max(1, step) + 1)
        if together < length and step:
            for first in range(0, length, together):
                part = into[(slice(None),) * axis + (slice(first, first + together),)]
                self._gather(access, start + first * step, part)
            return
        room = access.buffer("strided", span)
        access.read(Extent(self.extent.file, start, start + span), room)
        into[...] = np.ndarray(into.shape, into.dtype, room.data, 0, steps)


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Cut the entries [start, stop) of a tensor, in row-major order, into rectangles."""
    if start >= stop:
        return
    if not shape:
        yield Box((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # the rows that are there from end to end
    if first > last:
        yield from _inside(shape, last, start, stop)
        return
    yield from _inside(shape, first - 1, start, first * row)
    if first < last:
        yield Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))
    yield from _inside(shape, last, last * row, stop)


def _inside(shape: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Box]:
    """Cut the entries [start, stop), which are all in one row."""
    begin = row * math.prod(shape[1:])
    for box in boxes(shape[1:], start - begin, stop - begin):
        yield Box((row, *box.first), (1, *box.shape))
