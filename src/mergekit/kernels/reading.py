"""Reading the operands of a stripe in one call: the interpreter is asked for once, and not once for every file."""

from __future__ import annotations

from typing import Any

from numba.core import types
from numpy.typing import NDArray

Raw = NDArray[Any]

_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.uintp, types.int64))


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
