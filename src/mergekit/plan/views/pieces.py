"""Tensors that lie in the files as they are seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from mergekit.checkpoint import Extent, Stored, TensorSpec
from mergekit.kernels import RAW
from mergekit.plan.views.base import Access, Raw, StoredView, View


@final
@dataclass(frozen=True, slots=True)
class Pieces(StoredView):
    """One stored tensor, or several of one dtype laid end to end.

    Parameters:
        spec: dtype and shape as a whole, and the name of the first stored tensor.
        pieces: where the bytes are, in their order.
        names: the stored tensors.
    """

    spec: TensorSpec
    pieces: tuple[Extent, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, stored: Stored) -> Pieces:
        """A stored tensor as it is."""
        return cls(stored.spec, (stored.extent,), (stored.spec.name,))

    def rows(self, count: int) -> Pieces:
        """The first `count` rows of a view of one tensor."""
        spec = TensorSpec(self.spec.name, self.spec.dtype, (count, *self.spec.shape[1:]))
        (piece,) = self.pieces
        return Pieces(spec, (Extent(piece.file, piece.start, piece.start + spec.nbytes),), self.names)

    @property
    def plain(self) -> Extent | None:
        """That of the only piece, if kernels can read it."""
        return self.pieces[0] if len(self.pieces) == 1 and self.spec.dtype.name in RAW else None

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """The bytes of the entries [start, stop), piece by piece.

        Example:
            >>> from pathlib import Path
            >>> from mergekit.checkpoint import DTYPES
            >>> pieces = (Extent(Path("a"), 8, 12), Extent(Path("b"), 20, 24))
            >>> view = Pieces(TensorSpec("t", DTYPES["U8"], (8,)), pieces, ("t", "u"))
            >>> [(piece.start, piece.stop) for piece in view.extents(3, 6)]
            [(11, 12), (20, 22)]
        """
        bits = self.spec.dtype.bits
        first, last = start * bits // 8, stop * bits // 8
        for piece in self.pieces:
            begin, end = piece.start + max(first, 0), min(piece.start + last, piece.stop)
            if begin < end:
                yield Extent(piece.file, begin, end)
            first, last = first - piece.nbytes, last - piece.nbytes

    def read_bytes(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """One read for each piece."""
        for extent in self.extents(start, stop):
            access.read(extent, into[: extent.nbytes])
            into = into[extent.nbytes :]

    def gather(self, access: Access, starts: Sequence[int], places: Sequence[int], count: int, into: Raw) -> None:
        """The stretches of one stored tensor in one go, where they need no widening."""
        name, size = self.spec.dtype.name, self.spec.dtype.bits // 8
        if len(self.pieces) > 1 or name not in RAW or into.dtype != np.dtype(RAW[name]):
            View.gather(self, access, starts, places, count, into)
            return
        (piece,) = self.pieces
        begins = [piece.start + start * size for start in starts]
        access.gather(piece.file, begins, [place * size for place in places], count * size, into.view(np.uint8))
