"""The operands of a tensor as its stripes need them: what is the same for every stripe is found out once."""

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


@final
@dataclass(frozen=True, slots=True)
class Inputs:
    """What a worker knows about the operands of one tensor.

    Parameters:
        task: the tensor.
        target: what the method is told about it.
        nbytes: of all operands.
        dtype: of the raw entries in rows.
        places: descriptor and first byte of each operand, int64, shape (2, k), if all of them lie in files of the disk
            just as rows hold them.
    """

    task: TensorTask
    target: Target
    nbytes: int
    dtype: np.dtype[Any]
    places: Raw | None

    @classmethod
    def of(cls, task: TensorTask, files: Reader) -> Inputs:
        """Look at a tensor that is next."""
        dtype = np.dtype(RAW[task.row_format])
        return cls(task, task.target, task.read_bytes, dtype, _places(task, files))

    def read(self, access: Access, start: int, stop: int, rows: Raw) -> None:
        """Fill `rows`, shape (k, n), with the entries [start, stop) of the operands."""
        if self.places is not None:
            from mergekit.kernels.fused import read_rows

            if read_rows(*self.places, start * self.dtype.itemsize, rows.view(np.uint8)) == len(rows):
                return
        # One by one, also to say what is wrong with a file that has not given what it should have.
        for row, operand in zip(rows, self.task.operands, strict=True):
            operand.view.read(access, start, stop, row)


def _places(task: TensorTask, files: Reader) -> Raw | None:
    formats = {operand.view.row_format for operand in task.operands}
    extents = [operand.view.plain for operand in task.operands]
    if len(formats) > 1 or None in extents:
        return None
    found = [(files.descriptor(extent.file), extent.start) for extent in extents if extent is not None]
    if any(descriptor is None for descriptor, _ in found):
        return None
    return np.array(found, np.int64).T.copy()
