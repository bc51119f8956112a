"""Tensors with an adapter on top: computed stretch by stretch, from the base and two thin matrices."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from mergekit.checkpoint import Extent, TensorSpec
from mergekit.plan.views.base import Access, Raw, View

_WIDE = 4  # bytes of a float32
_QUIET: Mapping[str, Any] = {"divide": "ignore", "invalid": "ignore", "over": "ignore"}  # it is found in the output
_CHUNK = 1 << 16  # entries of whole lines that a pass over all of them takes at a time


def _wide(access: Access, view: View) -> Raw:
    """A whole small tensor as float32."""
    entries = np.empty(view.spec.count, np.float32)
    view.read(access, 0, entries.size, entries)
    return entries


class Overlaid(View, ABC):
    """A view over another one of the same name, dtype and shape: what is computed in float32 is rounded once, later."""

    base: View

    @property
    def spec(self) -> TensorSpec:  # type: ignore[override]
        """That of the base."""
        return self.base.spec

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the base."""
        return self.base.names

    @property
    def kept_bytes(self) -> int:
        """Those of the base."""
        return self.base.kept_bytes


class Multiplied(Overlaid, ABC):
    """A view with products of thin matrices added, all of which are read whole."""

    a: View
    b: View

    @property
    def nbytes(self) -> int:
        """Of the base and both factors."""
        return self.base.nbytes + self.a.nbytes + self.b.nbytes

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Those of the base, and all of the factors."""
        yield from self.base.extents(start, stop)
        for factor in (self.a, self.b):
            yield from factor.extents(0, factor.spec.count)


@final
@dataclass(frozen=True, slots=True, eq=False)
class LowRank(Multiplied):
    """A matrix plus a product of two thin ones: ``W + scale · B @ A``, or its transpose.

    A tensor of more dimensions is a matrix of its first dimension by all others.

    Parameters:
        base: W, shape (out, in), or (in, out) if `transposed`.
        a: shape (rank, in).
        b: shape (out, rank).
        scale: factor of the product.
        transposed: whether W is stored with its inputs first.
    """

    base: View
    a: View
    b: View
    scale: float
    transposed: bool = False

    @property
    def kept_bytes(self) -> int:
        """The factors as float32, twice while they are transposed, and one of them as it is stored."""
        entries = (self.a.spec.count + self.b.spec.count) * (2 if self.transposed else 1)
        return self.base.kept_bytes + _WIDE * entries + max(self.a.nbytes, self.b.nbytes)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """The base's entries with those of the product added."""
        from mergekit.kernels.fused import add_low_rank

        self.base.read(access, start, stop, into)
        left, right = access.kept(self, lambda: self._factors(access))
        add_low_rank(into, start, left, right)

    def _factors(self, access: Access) -> tuple[Raw, Raw]:
        """The factors of the matrix as it is stored, the first one with the scale in it."""
        a, b = _wide(access, self.a), _wide(access, self.b)
        rank = self.a.spec.shape[0]
        a, b = a.reshape(rank, -1), b.reshape(-1, rank)
        left, right = (a.T, b.T) if self.transposed else (b, a)
        left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
        with np.errstate(**_QUIET):
            left *= np.float32(self.scale)
        return left, right


@final
@dataclass(frozen=True, slots=True, eq=False)
class Shifted(Overlaid):
    """A tensor plus a multiple of another one of its shape.

    Parameters:
        base: the tensor.
        offset: what is added.
        scale: how often.
    """

    base: View
    offset: View
    scale: float

    @property
    def nbytes(self) -> int:
        """Of both."""
        return self.base.nbytes + self.offset.nbytes

    @property
    def kept_bytes(self) -> int:
        """The room for a stretch of the offset."""
        return self.base.kept_bytes + _WIDE * self.offset.spec.count

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Those of both."""
        yield from self.base.extents(start, stop)
        yield from self.offset.extents(start, stop)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """The sums of both tensors' entries."""
        self.base.read(access, start, stop, into)
        entries = access.buffer("offset", (stop - start) * _WIDE).view(np.float32)
        self.offset.read(access, start, stop, entries)
        with np.errstate(**_QUIET):
            into += np.float32(self.scale) * entries


@final
@dataclass(frozen=True, slots=True, eq=False)
class Normed(Overlaid):
    """A matrix whose outputs are scaled to given norms: ``m · V / ‖V‖`` (weight-decomposed adaptation, DoRA).

    Parameters:
        base: V; a tensor of more dimensions is a matrix of its first dimension by all others.
        magnitudes: m, one for each line, or for each column if `transposed`.
        transposed: whether V is stored with its inputs first, so that outputs are columns.
    """

    base: View
    magnitudes: View
    transposed: bool = False

    @property
    def nbytes(self) -> int:
        """Of the matrix and the norms; norms of columns take a pass of their own, of as many bytes at most."""
        return self.base.nbytes * (2 if self.transposed else 1) + self.magnitudes.nbytes

    @property
    def kept_bytes(self) -> int:
        """Whole lines beside a stretch, or of the pass, and a few numbers for each output."""
        outputs = 4 * 8 * self.magnitudes.spec.count
        return self.base.kept_bytes + outputs + _WIDE * max(2 * self._width, _CHUNK)

    @property
    def _width(self) -> int:
        return self.spec.count // max(1, self.spec.shape[0])

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """The lines that a stretch touches, whole, and the norms."""
        yield from self.base.extents(*self._lines(start, stop))
        yield from self.magnitudes.extents(0, self.magnitudes.spec.count)

    def _lines(self, start: int, stop: int) -> tuple[int, int]:
        """The stretch with all of its first and its last line."""
        width = max(1, self._width)
        return start // width * width, -(-stop // width) * width

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """Entries of whole lines, scaled; of them the wanted ones."""
        kept = access.kept(self, lambda: self._columns(access) if self.transposed else _wide(access, self.magnitudes))
        first, last = self._lines(start, stop)
        lines = self._whole(access, first, last)
        with np.errstate(**_QUIET):
            if self.transposed:
                lines *= kept
            else:
                line = first // max(1, self._width)
                lines *= _factors(kept[line : line + lines.shape[0]], _squared_lines(lines))[:, None]
        into[:] = lines.reshape(-1)[start - first : stop - first]

    def _whole(self, access: Access, first: int, last: int) -> Raw:
        entries = access.buffer("lines", (last - first) * _WIDE).view(np.float32)
        self.base.read(access, first, last, entries)
        return entries.reshape(-1, max(1, self._width))

    def _columns(self, access: Access) -> Raw:
        """The factor of each column."""
        from mergekit.kernels.fused import column_gram

        total = np.zeros(self._width)
        step = self._width * max(1, _CHUNK // max(1, self._width))  # whatever the stripes are
        for first in range(0, self.spec.count, step):
            lines = self._whole(access, first, min(first + step, self.spec.count))
            sums = np.empty((1, 1, self._width))
            column_gram(lines.reshape(-1)[:0], lines.reshape(1, -1), lines.size, sums)
            total += sums[0, 0]
        return _factors(_wide(access, self.magnitudes), total)


def _squared_lines(lines: Raw) -> Raw:
    """Squared norms of the lines of a matrix."""
    from mergekit.kernels.fused import gram

    sums = np.empty((lines.shape[0], 1, 1))
    gram(lines.reshape(-1)[:0], lines.reshape(1, -1), lines.shape[1], sums)
    return sums.reshape(-1)


def _factors(magnitudes: Raw, squares: Raw) -> Raw:
    with np.errstate(**_QUIET):
        factors: Raw = (magnitudes / np.sqrt(squares)).astype(np.float32)
    return factors


@final
@dataclass(frozen=True, slots=True, eq=False)
class NewRows(Overlaid):
    """A matrix of which some rows are others.

    Parameters:
        base: the matrix.
        values: what the rows are instead, shape (n, width).
        numbers: of these n rows in the matrix, each once.
    """

    base: View
    values: View
    numbers: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of the matrix and of the rows."""
        return self.base.nbytes + self.values.nbytes

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Of the matrix, and of the new rows among these."""
        yield from self.base.extents(start, stop)
        for place, first, last in self._among(start, stop):
            yield from self.values.extents(place, place + last - first)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """The matrix's entries, and the rows over them."""
        self.base.read(access, start, stop, into)
        for place, first, last in self._among(start, stop):
            self.values.read(access, place, place + last - first, into[first - start : last - start])

    def _among(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Of every new row between two entries: the place of its first one in the values, its first and its last."""
        width = self.spec.shape[1]
        for place, row in enumerate(self.numbers):
            first, last = max(start, row * width), min(stop, (row + 1) * width)
            if first < last:
                yield place * width + first - row * width, first, last


@final
@dataclass(frozen=True, slots=True, eq=False)
class InPlace(View):
    """A tensor that takes the place of another one.

    Parameters:
        view: its entries.
        spec: name, dtype and shape of what it replaces.
        names: the stored tensors that are replaced.
    """

    view: View
    spec: TensorSpec
    names: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Of its entries."""
        return self.view.nbytes

    @property
    def kept_bytes(self) -> int:
        """Those of its entries."""
        return self.view.kept_bytes

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Those of its entries."""
        return self.view.extents(start, stop)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """Its entries."""
        self.view.read(access, start, stop, into)
