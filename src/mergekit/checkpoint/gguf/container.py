"""The beginning of a GGUF file: its metadata and the table of its tensors, read with distrust.

A file is ``GGUF | version | counts | metadata | table of tensors | padding | bytes of the tensors``, little-endian.
Every count and length is compared with what is left of the file before anything is made of it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint.gguf.kinds import kind_numbered
from mergekit.checkpoint.tensors import Extent, Kind
from mergekit.errors import CheckpointError, HeaderError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SWAPPED = tuple(int.from_bytes(version.to_bytes(4, "big"), "little") for version in _VERSIONS)
_LONGEST = 65536  # bytes of a key or a tensor's name
_AXES = 4
_LARGEST = 2**63
_LIMIT = 100_000_000  # bytes before the first tensor; a vocabulary of 256 k tokens takes 8 MB
_CHUNK = 1 << 20
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Formats of `struct` by GGUF's numbers for types of values."""

_LEAST_ENTRY = {_STRING: 8, _ARRAY: 12} | {number: struct.calcsize(code) for number, code in _SCALARS.items()}
_LEAST_KEY, _LEAST_TENSOR = 13, 32  # bytes of an entry of the metadata and of the table of tensors


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a GGUF file.

    Parameters:
        name: in the file, ``blk.0.attn_q.weight``.
        kind: how its entries are packed.
        shape: its dimensions in elements, the slowest first (the file has them the other way round).
        extent: where its bytes are.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    extent: Extent


@dataclass(frozen=True, slots=True)
class Container:
    """What a GGUF file says about itself.

    Parameters:
        file: the file.
        metadata: its settings; lists of numbers are arrays, other lists are tuples.
        entries: its tensors by name, in the order of the table.
        nbytes: size of everything before the tensors, in bytes.
    """

    file: Path
    metadata: Mapping[str, Any]
    entries: Mapping[str, Entry]
    nbytes: int


def read_container(file: Path) -> Container:
    """Read and check everything before the first tensor of a GGUF file.

    Parameters:
        file: the file.

    Returns:
        Metadata and tensors; no two of these overlap, and all lie within the file.

    Raises:
        HeaderError: the file contradicts the format, itself or its size.
        CheckpointError: it cannot be read, or holds blocks that cannot be dequantised.
    """
    try:
        with file.open("rb") as stream:
            return _parse(file, _Cursor(stream, os.fstat(stream.fileno()).st_size))
    except OSError as error:
        raise CheckpointError(f"cannot read the file: {error.strerror}", place=str(file)) from error
    except ValueError as cause:
        raise HeaderError(str(cause), place=str(file), expected="a GGUF file of version 2 or 3") from cause


@final
@dataclass(slots=True)
class _Cursor:
    """Takes values from a file, one after the other, and never more than the file has."""

    stream: BufferedReader
    size: int
    _room: bytes = b""
    _next: int = 0
    _read: int = 0

    @property
    def position(self) -> int:
        """Bytes that were taken."""
        return self._read - len(self._room) + self._next

    def take(self, count: int) -> bytes:
        """The next bytes."""
        stop = self._next + count
        if stop > len(self._room):
            self.expect(count, 1)
            self._fill(count)
            stop = count
        taken = self._room[self._next : stop]
        self._next = stop
        return taken

    def _fill(self, count: int) -> None:
        rest = self._room[self._next :]
        more = self.stream.read(max(count - len(rest), _CHUNK))
        self._room, self._next, self._read = rest + more, 0, self._read + len(more)
        if len(self._room) < count:
            raise ValueError("the file became shorter while it was read")

    def expect(self, count: int, least: int) -> None:
        """Refuse a count of things that take at least so many bytes each, if the file has not that many left."""
        left = self.size - self.position
        if count * least > left:
            raise ValueError(f"the file is cut short: {left:,} bytes follow byte {self.position:,}, too few")
        if self.position + count * least > _LIMIT:
            raise ValueError(f"what comes before the tensors takes more than the {_LIMIT:,} bytes that are allowed")

    def number(self, code: str) -> Any:
        """The next number, in a format of `struct`."""
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def text(self, longest: int = _LARGEST) -> str:
        """The next string."""
        length = self.number("Q")
        if length > longest:
            raise ValueError(f"a name has {length:,} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the text before byte {self.position:,} is not UTF-8") from error

    def value(self, kind: int, nested: bool = False) -> Any:
        """The next value of a kind of the format."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and not nested:
            return self._list()
        if kind not in _SCALARS:
            raise ValueError(f"a value of the unknown type {kind}")
        return _shortest(kind, self.number(_SCALARS[kind]))

    def _list(self) -> tuple[Any, ...] | NDArray[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind not in _LEAST_ENTRY:
            raise ValueError(f"a list of the unknown type {kind}")
        self.expect(count, _LEAST_ENTRY[kind])
        if kind in _SCALARS:
            return np.frombuffer(self.take(count * _LEAST_ENTRY[kind]), "<" + _SCALARS[kind])
        return tuple(self.value(kind, nested=True) for _ in range(count))


def _shortest(kind: int, value: Any) -> Any:
    """A float32 as its shortest decimal number: 1e-05 was meant, not 9.999999747378752e-06."""
    if _SCALARS[kind] == "f" and math.isfinite(value):
        return next(short for digits in range(6, 18) if _narrow(short := float(f"{value:.{digits}g}")) == value)
    return value


def _narrow(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


@dataclass(slots=True)
class _Row:
    """A row of the table of tensors, before it is known where the tensors begin."""

    name: str
    shape: tuple[int, ...]
    number: int
    offset: int


def _parse(file: Path, cursor: _Cursor) -> Container:
    if cursor.size < len(_MAGIC) or cursor.take(len(_MAGIC)) != _MAGIC:
        raise ValueError("the file does not begin with `GGUF`")
    version = cursor.number("I")
    if version in _SWAPPED:
        raise ValueError("the file is for big-endian machines")
    if version not in _VERSIONS:
        raise ValueError(f"the file has version {version} of the format")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    cursor.expect(keys, _LEAST_KEY)
    metadata = _distinct("key", keys, lambda: (cursor.text(_LONGEST), cursor.value(cursor.number("I"))))
    cursor.expect(tensors, _LEAST_TENSOR)
    rows = _distinct("tensor", tensors, lambda: _row(cursor))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= _CHUNK:
        raise ValueError(f"the alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    entries = {name: _entry(row, file, start, alignment) for name, row in rows.items()}
    _check_places(entries, cursor.size)
    return Container(file, metadata, entries, min(start, cursor.size))


def _distinct(what: str, count: int, take: Callable[[], tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        name, value = take()
        if name in found:
            raise ValueError(f"the file has the {what} {name!r} twice")
        found[name] = value
    return found


def _row(cursor: _Cursor) -> tuple[str, _Row]:
    name = cursor.text(_LONGEST)
    axes = cursor.number("I")
    if axes > _AXES:
        raise ValueError(f"tensor {name!r} has {axes} dimensions")
    shape = tuple(reversed([cursor.number("Q") for _ in range(axes)]))
    if math.prod(max(length, 1) for length in shape) >= _LARGEST:
        raise ValueError(f"tensor {name!r} has the impossible shape {list(shape)}")
    return name, _Row(name, shape, cursor.number("I"), cursor.number("Q"))


def _entry(row: _Row, file: Path, start: int, alignment: int) -> Entry:
    kind = kind_numbered(row.number, row.name, file)
    if row.offset % alignment:
        raise ValueError(f"tensor {row.name!r} begins at {row.offset:,}, which is no multiple of {alignment}")
    width = row.shape[-1] if row.shape else 1
    if width % kind.entries:
        raise ValueError(f"tensor {row.name!r} of {kind.name} has rows of {width}, no multiple of {kind.entries}")
    nbytes = math.prod(row.shape) // kind.entries * kind.nbytes
    begin = start + row.offset
    return Entry(row.name, kind, row.shape, Extent(file, begin, begin + nbytes))


def _check_places(entries: Mapping[str, Entry], size: int) -> None:
    end, last = 0, ""
    for entry in sorted(entries.values(), key=lambda entry: (entry.extent.start, entry.extent.stop)):
        if entry.extent.start < end:
            raise ValueError(f"tensor {entry.name!r} overlaps {last!r} by {end - entry.extent.start:,} bytes")
        end, last = entry.extent.stop, entry.name
    if end > size:
        raise ValueError(f"the file is cut short: it has {size:,} bytes, {last!r} ends at {end:,}")
