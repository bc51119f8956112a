"""Vocabulary matrices, row by row, in bounded memory.

Public: :class:`Scratch`, :class:`Stash`, :class:`Store`, :class:`Matrix`, :class:`Anchors`, :func:`gather_anchors`,
:func:`spans`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Extent
from mergekit.checkpoint.reading import Buffer, octets, read_at
from mergekit.checkpoint.writing import reported
from mergekit.kernels import RAW
from mergekit.plan.views import View

Raw = NDArray[Any]
Rows = NDArray[np.int64]
_T = TypeVar("_T")

_WIDE = 4  # bytes of a float32
_BLOCK = 4 << 20  # entries that are read at a time
READING = 8 * _WIDE * _BLOCK
"""Bytes that reading and multiplying a block takes at most."""


class Reader(Protocol):
    """What views are read from, such as :class:`mergekit.checkpoint.Files`."""

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size."""


class Store(Protocol):
    """Float32 rows, shape (n, width), in memory or in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and entries of each."""

    def __getitem__(self, key: Any) -> Any:
        """The rows of a slice, or of numbers in an array."""

    def __setitem__(self, key: Any, rows: Any) -> None:
        """Write the rows of a slice."""


@final
@dataclass(init=False, eq=False)
class Stash:
    """Rows in a file without a name, which ends with the process: read and written, never mapped.

    Attributes:
        shape: rows and entries of each.
        written: a hash of all that was written, by which one can tell whether two hold the same.

    Parameters:
        folder: where the file is, or None for the system's folder.
        rows: how many.
        width: entries of each.

    Raises:
        OutputError: the disk is full.

    Example:
        >>> stash = Stash(None, 3, 2)
        >>> stash[1:3] = np.array([[1, 2], [3, 4]], np.float32)
        >>> stash[np.array([2, 1])].tolist(), stash.flat[3:5].tolist()
        ([[3.0, 4.0], [1.0, 2.0]], [2.0, 3.0])
    """

    shape: tuple[int, int]
    written: str

    def __init__(self, folder: Path | None, rows: int, width: int) -> None:
        self.shape, self.written = (rows, width), ""
        nbytes = rows * width * _WIDE
        with tempfile.TemporaryFile(dir=folder) as stream:
            self._descriptor = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        with reported(Path(folder or tempfile.gettempdir()), nbytes):
            os.posix_fallocate(self._descriptor, 0, max(1, nbytes))

    @property
    def flat(self) -> Flat:
        """The entries one after the other."""
        return Flat(self)

    def __getitem__(self, key: slice | Rows) -> Raw:
        rows, width = self.shape
        if not isinstance(key, slice):
            return np.stack([self.entries(row * width, width) for row in key.tolist()])
        start, stop, _ = key.indices(rows)
        return self.entries(start * width, (stop - start) * width).reshape(-1, width)

    def __setitem__(self, key: slice, rows: Raw) -> None:
        start, _, _ = key.indices(self.shape[0])
        rest, place = octets(np.ascontiguousarray(rows, np.float32)), start * self.shape[1] * _WIDE
        self.written = hashlib.sha256(f"{self.written} {place} ".encode() + rest).hexdigest()
        while rest:
            count = os.pwrite(self._descriptor, rest, place)
            rest, place = rest[count:], place + count

    def entries(self, start: int, count: int) -> Raw:
        """Some of the entries, flat."""
        out = np.empty(count, np.float32)
        read_at(self._descriptor, start * _WIDE, out)
        return out


@final
@dataclass(frozen=True, slots=True)
class Flat:
    """The entries of a stash one after the other.

    Parameters:
        stash: the rows.
    """

    stash: Stash

    def __getitem__(self, span: slice) -> Raw:
        return self.stash.entries(span.start, span.stop - span.start)


@final
@dataclass(frozen=True, slots=True)
class Scratch:
    """Makes room for rows: for few in memory, for many in a file without a name.

    Parameters:
        folder: where the file is made, or None for the system's folder.
        limit: bytes of memory that all work may take.
    """

    folder: Path | None = None
    limit: int = 2 << 30

    @property
    def small(self) -> int:
        """Bytes of rows up to which they are held in memory."""
        return self.limit // 32

    @property
    def entries(self) -> int:
        """Float64 entries that a method may hold for the tokens that it works on at a time."""
        return self.limit // 128

    def rows(self, count: int, width: int) -> Raw | Stash:
        """Room for float32 rows, shape (count, width).

        Raises:
            OutputError: the disk is full.
        """
        if count * width * _WIDE <= self.small:
            return np.empty((count, width), np.float32)
        return Stash(self.folder if self.folder is not None and self.folder.is_dir() else None, count, width)


def spans(count: int, step: int) -> Iterator[slice]:
    """Stretches of so many rows, the last one shorter.

    Example:
        >>> [(span.start, span.stop) for span in spans(5, 2)]
        [(0, 2), (2, 4), (4, 5)]
    """
    return (slice(start, min(start + step, count)) for start in range(0, count, max(1, step)))


@final
class _Access:
    """What a view reads with: files, fresh room, and what it keeps."""

    def __init__(self, files: Reader) -> None:
        self.read = files.read
        self.gather = files.gather
        self._kept: dict[View, Any] = {}

    def buffer(self, _use: str, nbytes: int) -> Raw:
        return np.empty(nbytes, np.uint8)

    def kept(self, view: View, make: Callable[[], _T]) -> _T:
        if view not in self._kept:
            self._kept[view] = make()
        found: _T = self._kept[view]
        return found


@final
@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix with one row for each token.

    Parameters:
        view: its entries, two dimensions.
        files: what they are read from.
    """

    view: View
    files: Reader
    _access: _Access = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_access", _Access(self.files))

    @property
    def height(self) -> int:
        """How many rows there are."""
        return int(self.view.spec.shape[0])

    @property
    def width(self) -> int:
        """Entries of a row."""
        return int(self.view.spec.shape[1])

    @property
    def step(self) -> int:
        """Rows that are read at a time."""
        return max(1, _BLOCK // self.width)

    def rows(self, numbers: Rows) -> Raw:
        """Some of the rows as float32, shape (n, width)."""
        raw = np.empty(numbers.size * self.width, RAW[self.view.row_format])
        places = np.arange(numbers.size) * self.width
        self.view.gather(self._access, (numbers * self.width).tolist(), places.tolist(), self.width, raw)
        return self._widened(raw)

    def blocks(self) -> Iterator[tuple[slice, Raw]]:
        """All rows as float32, block by block."""
        for span in spans(self.height, self.step):
            raw = np.empty((span.stop - span.start) * self.width, RAW[self.view.row_format])
            self.view.read(self._access, span.start * self.width, span.stop * self.width, raw)
            yield span, self._widened(raw)

    @cached_property
    def mean(self) -> Raw:
        """The mean of all rows, float64, shape (width,)."""
        total = np.zeros(self.width)
        for _, block in self.blocks():
            total += block.sum(axis=0, dtype=np.float64)
        return total / max(1, self.height)

    def _widened(self, raw: Raw) -> Raw:
        from mergekit.kernels.fused import widen

        if raw.dtype == np.float32:
            return raw.reshape(-1, self.width)
        wide = np.empty(raw.size, np.float32)
        widen(raw, wide)
        return wide.reshape(-1, self.width)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """Rows of the tokens that both models have.

    Parameters:
        tokens: their ids in the donor, ascending, shape (n,).
        donor: the donor's rows, float32, shape (n, width of the donor).
        model: the model's rows, float32, shape (n, width of the model).
    """

    tokens: Rows
    donor: Store
    model: Store

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.tokens.size)

    def some(self, kept: NDArray[np.bool_], scratch: Scratch) -> Anchors:
        """Those that a mask says."""
        places = np.flatnonzero(kept)
        donor, model = (_copied(rows, places, scratch) for rows in (self.donor, self.model))
        return Anchors(self.tokens[places], donor, model)


def gather_anchors(donor: Matrix, model: Matrix, shared: tuple[Rows, Rows], scratch: Scratch) -> Anchors:
    """Read the rows of the tokens that both models have.

    Parameters:
        donor: its matrix.
        model: its matrix.
        shared: their ids in the donor, and their rows in the model.
        scratch: where they are kept.
    """
    return Anchors(shared[0], _gathered(donor, shared[0], scratch), _gathered(model, shared[1], scratch))


def _gathered(matrix: Matrix, numbers: Rows, scratch: Scratch) -> Raw | Stash:
    out = scratch.rows(numbers.size, matrix.width)
    for span in spans(numbers.size, matrix.step):
        out[span] = matrix.rows(numbers[span])
    return out


def _copied(rows: Store, places: Rows, scratch: Scratch) -> Raw | Stash:
    out = scratch.rows(places.size, rows.shape[1])
    for span in spans(places.size, max(1, _BLOCK // max(1, rows.shape[1]))):
        out[span] = rows[places[span]]
    return out
