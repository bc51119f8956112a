"""Tensors that are unpacked on the way in: the blocks of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import final

import numpy as np

from mergekit.checkpoint import Blocks, Extent, Kind, Stored, TensorSpec
from mergekit.checkpoint.gguf import unpack
from mergekit.plan.views.base import Access, Raw, View

_STEP = 1 << 16  # entries that are unpacked at a time, about: what the library makes on the way stays in the cache
_ROOM = 4 << 20  # bytes for all that


def _unpack_blocks(kind: Kind, octets: Raw, entries: Raw) -> None:
    """Blocks to entries; by kernels where there are some, and else by the library, which takes some 20 times longer."""
    from mergekit.kernels import fused

    kernels = {
        "Q4_0": fused.unpack_q4_0,
        "Q8_0": fused.unpack_q8_0,
        "Q4_K": fused.unpack_q4_k,
        "Q5_K": fused.unpack_q5_k,
        "Q6_K": fused.unpack_q6_k,
    }
    kernels.get(kind.name, partial(unpack, kind))(octets, entries)


@final
@dataclass(frozen=True, slots=True)
class Unpacked(View):
    """A tensor in blocks, some of whose rows may stand elsewhere in the file.

    Entries are computed block by block in float32, so that they do not depend on what is read together.

    Parameters:
        spec: name, the dtype that the entries stand for, and shape.
        names: the stored tensor.
        extent: all blocks.
        blocks: how they are unpacked.
    """

    spec: TensorSpec
    names: tuple[str, ...]
    extent: Extent
    blocks: Blocks

    @classmethod
    def of(cls, stored: Stored) -> Unpacked:
        """The view of a stored tensor in blocks."""
        assert stored.blocks is not None
        return cls(stored.spec, (stored.spec.name,), stored.extent, stored.blocks)

    @property
    def nbytes(self) -> int:
        """Size of all blocks in bytes."""
        return self.extent.nbytes

    @property
    def kept_bytes(self) -> int:
        """What some blocks and their entries take."""
        return _ROOM

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Whole blocks around the entries [start, stop), in the order in which they are seen."""
        kind = self.blocks.kind
        for first, last in self._runs(start // kind.entries, -(-stop // kind.entries)):
            begin = self.extent.start + first * kind.nbytes
            yield Extent(self.extent.file, begin, begin + (last - first) * kind.nbytes)

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The blocks [first, last) as runs that are together in the file."""
        if not self.blocks.heads:
            yield first, last
            return
        across = self.spec.count // self.spec.shape[0] // self.blocks.kind.entries  # blocks of a row
        edges = [first, *range((first // across + 1) * across, last, across), last]
        for begin, end in pairwise(edges):
            moved = (self._stored_row(begin // across) - begin // across) * across
            yield begin + moved, end + moved

    def _stored_row(self, row: int) -> int:
        high = self.spec.shape[0] // self.blocks.heads
        head, within = divmod(row, high)
        half, pair = divmod(within, high // 2)
        return head * high + 2 * pair + half

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """Read the blocks around the entries and unpack them, some at a time."""
        size = self.blocks.kind.entries
        step = max(1, _STEP // size) * size
        edges = [start, *range((start // step + 1) * step, stop, step), stop]
        for first, last in pairwise(edges):
            self._unpack(access, first, last, into[first - start : last - start])

    def _unpack(self, access: Access, start: int, stop: int, into: Raw) -> None:
        extents = list(self.extents(start, stop))
        octets = access.buffer("gguf blocks", sum(extent.nbytes for extent in extents))
        end = 0
        for extent in extents:
            access.read(extent, octets[end : end + extent.nbytes])
            end += extent.nbytes
        kind = self.blocks.kind
        entries = access.buffer("gguf entries", end // kind.nbytes * kind.entries * 4).view("<f4")
        _unpack_blocks(kind, octets, entries)
        before = start % kind.entries
        into[:] = entries[before : before + stop - start]
        if self.blocks.shift:
            into += np.float32(self.blocks.shift)
