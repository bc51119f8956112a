"""Positioned reads: any thread, any order, into the caller's buffer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, final

import numpy as np

from mergekit.checkpoint.tensors import Extent, Stored
from mergekit.errors import CheckpointError

Buffer = memoryview | np.ndarray[Any, Any]
"""What is read into and written from: any C-contiguous array or view."""


def octets(buffer: Buffer | bytes) -> memoryview:
    """Return the bytes of a C-contiguous buffer without copying them.

    Raises:
        ValueError: the buffer is not contiguous.
    """
    return np.frombuffer(buffer, np.uint8).data


def open_file(file: Path) -> int:
    """Open a file for positioned reads and return its descriptor.

    Raises:
        CheckpointError: it cannot be opened.
    """
    try:
        return os.open(file, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"cannot open the file: {error.strerror}", place=str(file)) from error


def read_at(descriptor: int, start: int, into: Buffer) -> int:
    """Fill a buffer from one place of a file and return how many bytes there were before the file ended.

    Parameters:
        descriptor: an open file.
        start: first byte, counted from the beginning of the file.
        into: C-contiguous writable buffer.
    """
    rest = octets(into)
    # The kernel may return less than was asked for (always above 2 GiB). Python itself repeats interrupted calls.
    while rest and (count := os.preadv(descriptor, [rest], start)):
        rest, start = rest[count:], start + count
    return into.nbytes - rest.nbytes


@final
class Files:
    """The open files of a merge; every file is opened once and may be read by many threads at a time.

    Parameters:
        root: what relative names of files begin at; the current folder if not given.

    Example:
        >>> buffer = bytearray(8)
        >>> with Files() as files:
        ...     files.read(Extent(Path(__file__), 3, 11), memoryview(buffer))
        >>> buffer.decode()
        'Position'
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or Path()
        self._descriptors: dict[Path, int] = {}
        self._lock = Lock()

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent.

        Parameters:
            extent: what to read.
            into: C-contiguous writable buffer of exactly the extent's size.

        Raises:
            CheckpointError: the file cannot be read, or ends before the extent does.
            ValueError: the buffer has another size than the extent.
        """
        if into.nbytes != extent.nbytes:
            raise ValueError(f"a buffer of {into.nbytes} bytes cannot hold an extent of {extent.nbytes} bytes")
        descriptor = self.descriptor(extent.file)
        try:
            count = read_at(descriptor, extent.start, into)
        except OSError as error:
            raise CheckpointError(f"cannot read the file: {error.strerror}", place=str(extent.file)) from error
        if count < extent.nbytes:
            raise CheckpointError(
                f"the file ends at byte {extent.start + count}, in the middle of a tensor",
                place=str(extent.file),
                expected=f"bytes up to {extent.stop}; the file was longer when the merge was planned",
                hint="downloading or copying the model again",
            )

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size.

        Parameters:
            file: where they are.
            starts: first byte of each.
            places: byte of the buffer where each goes.
            nbytes: size of each.
            into: C-contiguous writable buffer.

        Raises:
            CheckpointError: the file cannot be read, or ends before a stretch does.
        """
        # Rows of a vocabulary in another order come by the hundred thousand: nothing but the call is in the loop.
        descriptor, room, read = self.descriptor(file), octets(into), os.preadv
        for start, place in zip(starts, places, strict=True):
            part = room[place : place + nbytes]
            try:
                whole = read(descriptor, [part], start) == nbytes
            except OSError:
                whole = False
            if not whole:
                self.read(Extent(file, start, start + nbytes), part)

    def prefetch(self, extent: Extent) -> None:
        """Ask the operating system to have an extent in memory soon, where it can be asked.

        Raises:
            CheckpointError: the file cannot be opened.
        """
        if hasattr(os, "posix_fadvise"):
            descriptor = self.descriptor(extent.file)
            with suppress(OSError):  # advice: not every file system takes it
                os.posix_fadvise(descriptor, extent.start, extent.nbytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def descriptor(self, file: Path) -> int:
        """The descriptor of a file, for reads at any place.

        Raises:
            CheckpointError: the file cannot be opened.
        """
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = open_file(self._root / file)
            return self._descriptors[file]


def read_tensor(stored: Stored) -> np.ndarray[Any, Any]:
    """Read a whole tensor as an array of its storage dtype; elements of less than a byte stay packed, in one dimension.

    Raises:
        CheckpointError: the file cannot be read, or ends before the tensor does.
    """
    spec = stored.spec
    if stored.strides is not None:
        return _read_strided(stored, stored.strides)
    array = np.empty(spec.shape if spec.dtype.bits >= 8 else spec.nbytes, spec.dtype.storage)
    with Files() as files:
        files.read(stored.extent, array)
    return array


def _read_strided(stored: Stored, strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
    span = np.empty(stored.extent.nbytes, np.uint8).view(stored.spec.dtype.storage)
    with Files() as files:
        files.read(stored.extent, span)
    steps = [stride * span.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(span, stored.spec.shape, steps).copy()
