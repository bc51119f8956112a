"""Numbers that many entries of a quantised weight share: scales and zero points, stored in several ways."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint.quantised.numbers import Floats, whole_numbers, widened
from mergekit.checkpoint.reading import Buffer
from mergekit.checkpoint.tensors import Extent, Stored


class Source(Protocol):
    """What factors are read with."""

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""


class Factors(ABC):
    """Numbers by their place in a grid."""

    @abstractmethod
    def extents(self, first: int, last: int) -> Iterator[Extent]:
        """What is read for the numbers [first, last)."""

    @abstractmethod
    def values(self, source: Source, first: int, last: int) -> Floats:
        """The numbers [first, last)."""


def _part(stored: Stored, first: int, last: int) -> Extent:
    start, size = stored.extent.start, stored.spec.dtype.bits // 8
    return Extent(stored.extent.file, start + first * size, start + last * size)


def _read(source: Source, extent: Extent) -> NDArray[np.uint8]:
    octets = np.empty(extent.nbytes, np.uint8)
    source.read(extent, octets)
    return octets


@final
@dataclass(frozen=True, slots=True)
class PlainFactors(Factors):
    """One stored number each."""

    stored: Stored

    def extents(self, first: int, last: int) -> Iterator[Extent]:
        """Their bytes."""
        yield _part(self.stored, first, last)

    def values(self, source: Source, first: int, last: int) -> Floats:
        """The stored numbers, widened."""
        return widened(_read(source, _part(self.stored, first, last)), self.stored.spec.dtype)


@final
@dataclass(frozen=True, slots=True)
class NestedFactors(Factors):
    """Factors that are quantised themselves: ``table[code] · scale + offset``.

    Parameters:
        stored: a code of 8 bits each.
        table: float32 of each code, as bytes.
        scales: factors of the factors.
        block: factors that share one of those.
        offset: added last.
    """

    stored: Stored
    table: bytes
    scales: Factors
    block: int
    offset: float

    def _outer(self, first: int, last: int) -> tuple[int, int]:
        return first // self.block, -(-last // self.block)

    def extents(self, first: int, last: int) -> Iterator[Extent]:
        """The bytes of the codes and of their own factors."""
        yield _part(self.stored, first, last)
        yield from self.scales.extents(*self._outer(first, last))

    def values(self, source: Source, first: int, last: int) -> Floats:
        """The factors, in float32 arithmetic."""
        codes = _read(source, _part(self.stored, first, last))
        begin, end = self._outer(first, last)
        scales = self.scales.values(source, begin, end)[np.arange(first, last) // self.block - begin]
        values: Floats = np.frombuffer(self.table, np.float32)[codes] * scales + np.float32(self.offset)
        return values


@final
@dataclass(frozen=True, slots=True)
class PackedZeros(Factors):
    """Zero points of a few bits, those of neighbouring rows in one word of 32 bits.

    Parameters:
        stored: the words, shape (rows / numbers in a word, width).
        bits: of one number.
        width: zero points of a row.
    """

    stored: Stored
    bits: int
    width: int

    def _words(self, first: int, last: int) -> tuple[int, int]:
        rows = self.width * (32 // self.bits)
        return first // rows * self.width, -(-last // rows) * self.width

    def extents(self, first: int, last: int) -> Iterator[Extent]:
        """The bytes of whole rows of words."""
        yield _part(self.stored, *self._words(first, last))

    def values(self, source: Source, first: int, last: int) -> Floats:
        """The numbers, moved back to both sides of 0."""
        begin, end = self._words(first, last)
        words = _read(source, _part(self.stored, begin, end)).view("<u4")
        row, column = np.divmod(np.arange(first, last), self.width)
        count = 32 // self.bits
        shifts = (row % count * self.bits).astype(np.uint32)
        codes = words[row // count * self.width + column - begin] >> shifts & np.uint32((1 << self.bits) - 1)
        values: Floats = np.frombuffer(whole_numbers(self.bits), np.float32)[codes]
        return values
