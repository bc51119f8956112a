"""Matrices with a row for each token, in the order of another vocabulary: every row is a mean of stored rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Extent, TensorSpec
from mergekit.plan.views.base import Access, Raw, View

_CHUNK = 1 << 18  # entries of whole rows that a pass over all of them takes at a time
_WIDE = 4  # bytes of a float32
_MIXED, _ZERO = -2, -1
_FEW = 4  # rows in a run, on average, below which runs are not read one by one

Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowMap:
    """Which stored rows a row is made of: ``out[i] = mean over k of matrices[m_k][r_k]``, zeros where there are none.

    Parameters:
        starts: shape (rows + 1,), where the terms of each row begin.
        matrices: which matrix, for each term.
        origins: its row there, for each term.
        padding: rows at the end that are each the mean of all rows before them.
    """

    starts: Places
    matrices: Places
    origins: Places
    padding: int = 0

    @property
    def rows(self) -> int:
        """How many rows there are, with the padding."""
        return self.starts.size - 1 + self.padding

    @property
    def mixed(self) -> bool:
        """Whether any row has to be computed."""
        return self.padding > 0 or bool((np.diff(self.starts) > 1).any())

    def identity(self, matrix: int) -> bool:
        """Whether the rows are the first ones of one matrix, in their order."""
        runs = self.runs
        return not self.padding and runs.matrices.size == 1 and runs.matrices[0] == matrix and runs.origins[0] == 0

    @cached_property
    def runs(self) -> Runs:
        """The rows but the padding, as stretches that are read in one go."""
        counts = np.diff(self.starts)
        single = counts == 1
        terms = self.starts[:-1][single]
        matrices = np.where(counts == 0, _ZERO, _MIXED)
        origins = np.zeros(counts.size, np.int64)
        matrices[single], origins[single] = self.matrices[terms], self.origins[terms]
        follows = (matrices[1:] == matrices[:-1]) & (matrices[1:] != _MIXED)
        follows &= (matrices[1:] == _ZERO) | (origins[1:] == origins[:-1] + 1)
        firsts = np.flatnonzero(np.concatenate([[True], ~follows])) if counts.size else np.zeros(0, np.int64)
        return Runs(np.append(firsts, counts.size), matrices[firsts], origins[firsts])


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Stretches of rows that are rows of one matrix in their order, or zeros; rows that are means stand alone.

    Parameters:
        firsts: shape (runs + 1,), where each begins, and where the last one ends.
        matrices: which matrix, for each run; or a mark for zeros and means.
        origins: row of the matrix where it begins.
    """

    firsts: Places
    matrices: Places
    origins: Places

    def between(self, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        """Of every run between two rows: its part's first and last row, its matrix, and the part's origin."""
        run = int(np.searchsorted(self.firsts, first, "right")) - 1
        while first < last:
            stop = min(last, int(self.firsts[run + 1]))
            yield first, stop, int(self.matrices[run]), int(self.origins[run]) + first - int(self.firsts[run])
            first, run = stop, run + 1

    def count(self, first: int, last: int) -> int:
        """How many runs there are between two rows."""
        begin, end = np.searchsorted(self.firsts, (first, last - 1), "right")
        return int(end - begin) + 1

    def each(self, first: int, last: int) -> tuple[Places, Places]:
        """Matrix and origin of every row between two."""
        rows = np.arange(first, last)
        run = np.searchsorted(self.firsts, rows, "right") - 1
        return self.matrices[run], self.origins[run] + rows - self.firsts[run]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Aligned(View):
    """A matrix in the order of another vocabulary, and with that vocabulary's number of rows.

    Rows that are one stored row keep their bits; means are taken in float64 and rounded to float32.

    Parameters:
        spec: name and dtype of the model's own matrix, shape of the output.
        names: the model's own tensors.
        matrices: what the rows are taken from, all of one width.
        map: which row is made of which.
    """

    spec: TensorSpec
    names: tuple[str, ...]
    matrices: tuple[View, ...]
    map: RowMap

    @property
    def _width(self) -> int:
        return self.spec.count // max(1, self.map.rows)

    @property
    def nbytes(self) -> int:
        """Of all rows that are read; those of means are read once more for every padded stretch."""
        passes = 2 if self.map.padding else 1
        of_rows = [view.nbytes // max(1, view.spec.count // max(1, self._width)) for view in self.matrices]
        counts = np.bincount(self.map.matrices, minlength=len(self.matrices))
        return passes * sum(int(count) * size for count, size in zip(counts, of_rows, strict=True))

    @property
    def row_format(self) -> str:
        """That of all matrices, if they share one and no row has to be computed."""
        formats = {view.row_format for view in self.matrices}
        return "F32" if self.map.mixed or len(formats) > 1 else formats.pop()

    @property
    def kept_bytes(self) -> int:
        """Those of the matrices; a row, the mean of all rows, and a chunk of them."""
        room = 2 * _WIDE * self._width if self.map.mixed else 0
        if self.map.padding:
            room += _WIDE * max(_CHUNK, self._width) + 8 * 3 * self._width
        return room + max(view.kept_bytes for view in self.matrices)

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Of each run its own; all of the matrices where padding is asked for."""
        width = self._width
        end = width * (self.map.rows - self.map.padding)
        for first, last, matrix, origin in self._pieces(start, min(stop, end)):
            if matrix >= 0:
                yield from self.matrices[matrix].extents(origin, origin + last - first)
            elif matrix == _MIXED:
                for view, place in self._terms(first, width):
                    yield from view.extents(place, place + last - first)
        if stop > end:
            for view in self.matrices:
                yield from view.extents(0, view.spec.count)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """Run by run; where these are short, all rows of a matrix together."""
        width = self._width
        end = width * (self.map.rows - self.map.padding)
        first, last = -(-start // width), min(stop, end) // width
        if last - first > _FEW and self.map.runs.count(first, last) > (last - first) // _FEW:
            self._read(access, start, first * width, into[: first * width - start])
            self._scatter(access, first, last, into[first * width - start : last * width - start])
            start, into = last * width, into[last * width - start :]
        self._read(access, start, stop, into)

    def _scatter(self, access: Access, first: int, last: int, into: Raw) -> None:
        """Fill `into` with whole rows, matrix by matrix."""
        width = self._width
        matrices, origins = self.map.runs.each(first, last)
        for matrix, view in enumerate(self.matrices):
            rows = np.flatnonzero(matrices == matrix)
            view.gather(access, (origins[rows] * width).tolist(), (rows * width).tolist(), width, into)
        for row in np.flatnonzero(matrices < 0).tolist():
            self._read(access, (first + row) * width, (first + row + 1) * width, into[row * width : (row + 1) * width])

    def _read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        width = self._width
        end = width * (self.map.rows - self.map.padding)
        for first, last, matrix, origin in self._pieces(start, min(stop, end)):
            part = into[first - start : last - start]
            if matrix >= 0:
                self.matrices[matrix].read(access, origin, origin + last - first, part)
            elif matrix == _ZERO:
                part[:] = 0
            else:
                self._mean(access, first, width, part)
        if stop > end:
            mean = access.kept(self, lambda: self._mean_row(access))
            into[max(end - start, 0) :] = mean[np.arange(max(start, end), stop) % width]

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """The runs between two entries, in entries."""
        width = self._width
        if start >= stop:
            return
        for first, last, matrix, origin in self.map.runs.between(start // width, -(-stop // width)):
            begin, end = max(start, first * width), min(stop, last * width)
            yield begin, end, matrix, origin * width + begin - first * width

    def _terms(self, entry: int, width: int) -> Iterator[tuple[View, int]]:
        """What an entry is the mean of: views, and entries there."""
        row, column = divmod(entry, width)
        for term in range(int(self.map.starts[row]), int(self.map.starts[row + 1])):
            yield self.matrices[int(self.map.matrices[term])], int(self.map.origins[term]) * width + column

    def _mean(self, access: Access, entry: int, width: int, into: Raw) -> None:
        terms = list(self._terms(entry, width))
        row = access.buffer("aligned row", into.size * _WIDE).view(np.float32)
        total = np.zeros(into.size)
        for view, place in terms:
            view.read(access, place, place + into.size, row)
            total += row
        with np.errstate(over="ignore"):  # it is found in the output
            into[:] = total / len(terms)

    def _mean_row(self, access: Access) -> Raw:
        """The mean of all rows but the padding; chunks do not depend on stripes."""
        rows, width = self.map.rows - self.map.padding, self._width
        step = max(1, _CHUNK // max(1, width))
        total = np.zeros(width)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            chunk = access.buffer("aligned rows", (last - first) * width * _WIDE).view(np.float32)
            self.read(access, first * width, last * width, chunk)
            total += chunk.reshape(-1, width).sum(axis=0, dtype=np.float64)
        mean: Raw = (total / max(1, rows)).astype(np.float32)
        return mean


def aligned(matrices: tuple[View, ...], place: int, rows: RowMap, axis: int = 0) -> View:
    """A model's matrix by a row map: itself, or its first rows, where the map moves nothing.

    Parameters:
        matrices: what the map's terms refer to.
        place: of the model's own matrix among them.
        rows: the map.
        axis: which counts tokens: 0, or 1 of one line.
    """
    own = matrices[place]
    shape: tuple[Any, ...] = own.spec.shape
    if rows.identity(place) and (axis == 0 or rows.rows == shape[axis]):
        return own if rows.rows == shape[axis] else own.rows(rows.rows)
    new = (*shape[:axis], rows.rows, *shape[axis + 1 :])
    return Aligned(TensorSpec(own.spec.name, own.spec.dtype, new), own.names, matrices, rows)
