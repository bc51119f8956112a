"""What surrounds the mathematics of a stripe, in one call: the interpreter is asked for once, not for every step.

The system's errors are not told here. Who calls sees that not everything was done, and does it again in the ordinary
way, which meets the same error and says what it means.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numpy.typing import NDArray

from mergekit.kernels.checksum import checksum
from mergekit.kernels.compiling import inner
from mergekit.kernels.sums import measure

Raw = NDArray[Any]

_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.uintp, types.int64))
_pwrite: Any = types.ExternalFunction("pwrite", types.intp(types.int32, types.intp, types.uintp, types.int64))
_measure, _checksum = inner(measure), inner(checksum)


def read_rows(descriptors: Raw, starts: Raw, offset: int, rows: Raw) -> int:
    """Fill each row from a file of its own, by one positioned read.

    Parameters:
        descriptors: int64, shape (k,): open files.
        starts: int64, shape (k,): where the tensors begin, in bytes.
        offset: where to read from, in bytes from there.
        rows: uint8, shape (k, n), written.

    Returns:
        How many rows came whole; what a further one holds is undefined.
    """
    whole = 0
    for i in range(rows.shape[0]):
        if _pread(descriptors[i], rows[i].ctypes.data, rows.shape[1], starts[i] + offset) != rows.shape[1]:
            break
        whole += 1
    return whole


def hand_over(
    out: Raw, reference: Raw, grain: int, sums: Raw, octets: Raw, offset: int, descriptor: int, start: int, found: Raw
) -> None:
    """Measure a stretch of output, take its checksum and write it, while it is in the cache.

    Parameters:
        out, reference, grain, sums: as :func:`mergekit.kernels.sums.measure` takes them.
        octets: the bytes of `out`.
        offset: where they begin in the tensor, in bytes.
        descriptor: an open file.
        start: where the tensor begins in it, in bytes.
        found: int64, shape (3,), written: broken entries, the checksum, and how many bytes were written, if any.
    """
    found[0] = _measure(out, reference, grain, sums)
    found[1] = _checksum(octets, offset)
    found[2] = _pwrite(descriptor, octets.ctypes.data, octets.size, start + offset)
