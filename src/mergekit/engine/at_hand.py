"""The tensor at hand: what is the same for all of its stripes is found out once, and what can be done at once is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Extent
from mergekit.checkpoint.reading import Buffer
from mergekit.kernels import RAW
from mergekit.methods.contract import Target
from mergekit.plan import TensorTask
from mergekit.plan.views.base import Access

Raw = NDArray[Any]


class Reader(Protocol):
    """Where operands are read from: :class:`mergekit.checkpoint.Files`, or memory."""

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size."""

    def prefetch(self, extent: Extent) -> None:
        """Have an extent at hand soon."""

    def descriptor(self, file: Path) -> int | None:
        """An open descriptor of what is a file on the disk; None for what is not."""


class Writer(Protocol):
    """Where the output goes: :class:`mergekit.checkpoint.ShardWriter`, or memory; several threads write at a time."""

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Take the bytes of a tensor from an offset on."""

    def outlet(self, name: str) -> tuple[int, int] | None:
        """An open descriptor and the first byte of a tensor, if it goes into a file on the disk."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What is known about a stretch of output.

    Parameters:
        sums: per grain the squared norm of the output, of its distance to the first operand, and of that operand.
        broken: entries that are infinite or not a number.
        checksum: what the stretch adds to that of the tensor; see :mod:`mergekit.kernels.checksum`.
    """

    sums: Raw
    broken: int
    checksum: int


@final
@dataclass(frozen=True, slots=True, eq=False)
class AtHand:
    """What a worker knows about the tensor it works on.

    Parameters:
        task: the tensor.
        target: what the method is told about it.
        nbytes: of all operands.
        dtype: of the raw entries in rows.
        places: descriptor and first byte of each operand, int64, shape (2, k), if all of them lie in files of the disk
            just as rows hold them.
        outlet: descriptor and first byte of the output, if it goes into a file just as kernels write it.
    """

    task: TensorTask
    target: Target
    nbytes: int
    dtype: np.dtype[Any]
    places: Raw | None
    outlet: tuple[int, int] | None

    @classmethod
    def of(cls, task: TensorTask, files: Reader, writer: Writer) -> AtHand:
        """Look at a tensor that is next."""
        dtype = np.dtype(RAW[task.row_format])
        outlet = writer.outlet(task.out.name) if task.out.dtype.name in RAW else None
        return cls(task, task.target, task.read_bytes, dtype, _places(task, files), outlet)

    def read(self, access: Access, start: int, stop: int, rows: Raw) -> None:
        """Fill `rows`, shape (k, n), with the entries [start, stop) of the operands."""
        if self.places is not None:
            from mergekit.kernels.fused import read_rows

            if read_rows(*self.places, start * self.dtype.itemsize, rows.view(np.uint8)) == len(rows):
                return
        for row, operand in zip(rows, self.task.operands, strict=True):
            operand.view.read(access, start, stop, row)

    def hand_over(self, start: int, out: Raw, reference: Raw) -> tuple[Measure, bool]:
        """Measure raw entries of the output from `start` on, and write them; or else tell that this is left to do."""
        from mergekit.kernels import fused

        sums, found = np.empty((-(-out.size // self.target.grain), 3)), np.zeros(3, np.int64)
        octets, offset = out.view(np.uint8), start * out.itemsize
        descriptor, first = self.outlet or _NOWHERE
        fused.hand_over(out, reference, self.target.grain, sums, octets, offset, descriptor, first, found)
        broken, checksum, written = found.tolist()
        return Measure(sums, broken, checksum), written == octets.size


_NOWHERE = (-1, 0)  # no file has this descriptor


def _places(task: TensorTask, files: Reader) -> Raw | None:
    formats = {operand.view.row_format for operand in task.operands}
    extents = [operand.view.plain for operand in task.operands]
    if len(formats) > 1 or None in extents:
        return None
    found = [(files.descriptor(extent.file), extent.start) for extent in extents if extent is not None]
    if any(descriptor is None for descriptor, _ in found):
        return None
    return np.array(found, np.int64).T.copy()
