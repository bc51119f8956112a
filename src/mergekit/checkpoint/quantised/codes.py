"""A quantised weight as strides: where the code of an entry is, and which factor it shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mergekit.checkpoint.quantised.factors import Factors
from mergekit.checkpoint.tensors import Extent, TensorSpec

_WINDOW = 8 << 20  # bits of codes that are held at a time


@dataclass(frozen=True, slots=True)
class Box:
    """Entries of one matrix: rows and columns from a first to before a last one."""

    matrix: int
    top: int
    bottom: int
    left: int
    right: int

    def halves(self, by_rows: bool) -> tuple[Box, Box]:
        """The upper and the lower half, or the left and the right one."""
        if by_rows:
            middle = (self.top + self.bottom) // 2
            upper = Box(self.matrix, self.top, middle, self.left, self.right)
            return upper, Box(self.matrix, middle, self.bottom, self.left, self.right)
        middle = (self.left + self.right) // 2
        left = Box(self.matrix, self.top, self.bottom, self.left, middle)
        return left, Box(self.matrix, self.top, self.bottom, middle, self.right)


@dataclass(frozen=True, slots=True)
class Steps:
    """How far apart neighbours are: matrices, rows, columns."""

    matrix: int
    row: int
    column: int

    def at(self, matrix: int, row: int, column: int) -> int:
        """Distance from the first."""
        return matrix * self.matrix + row * self.row + column * self.column


@dataclass(frozen=True, slots=True)
class Codes:
    """Where codes are and what they stand for.

    Parameters:
        extent: their bytes.
        bits: of one code: 1, 2, 4 or 8.
        steps: between codes of neighbouring entries, in bits.
        table: float32 of each code, as bytes.
        high_first: the first of two codes in a byte is in its upper half.
    """

    extent: Extent
    bits: int
    steps: Steps
    table: bytes
    high_first: bool = False

    def window(self, box: Box) -> tuple[int, int]:
        """First and last bit of the codes of a box, the last not among them."""
        first = self.steps.at(box.matrix, box.top, box.left)
        return first, self.steps.at(box.matrix, box.bottom - 1, box.right - 1) + self.bits

    def bytes_of(self, box: Box) -> Extent:
        """The bytes between the first and the last code of a box."""
        first, last = self.window(box)
        return Extent(self.extent.file, self.extent.start + first // 8, self.extent.start + -(-last // 8))


@dataclass(frozen=True, slots=True)
class Grid:
    """Which factor an entry shares.

    Parameters:
        rows: entries of a column that share a factor.
        columns: entries of a row that share one.
        steps: between factors of neighbouring matrices, block rows and block columns.
    """

    rows: int
    columns: int
    steps: Steps

    def window(self, box: Box) -> tuple[int, int]:
        """First and last factor of a box, the last not among them."""
        first = self.steps.at(box.matrix, box.top // self.rows, box.left // self.columns)
        last = self.steps.at(box.matrix, (box.bottom - 1) // self.rows, (box.right - 1) // self.columns)
        return first, last + 1


@dataclass(frozen=True, slots=True)
class Quantised:
    """One weight of several stored tensors.

    Parameters:
        spec: name, shape and dtype that the weight has when it is not quantised.
        names: the stored tensors, those that say nothing about the weight included.
        nbytes: their size.
        matrix: rows and columns of one matrix; a vector or a flat list of entries is one row.
        codes: its entries.
        grid: which factor an entry shares.
        scales: factors.
        zeros: zero points by the same grid, subtracted before scaling; None for none.
        factor: of all entries, applied last.
    """

    spec: TensorSpec
    names: tuple[str, ...]
    nbytes: int
    matrix: tuple[int, int]
    codes: Codes
    grid: Grid
    scales: Factors | None = None
    zeros: Factors | None = None
    factor: float = 1.0

    def boxes(self, start: int, stop: int) -> Iterator[Box]:
        """The entries [start, stop) in order, as rectangles.

        Example:
            >>> from pathlib import Path
            >>> from mergekit.checkpoint import DTYPES
            >>> spec = TensorSpec("w", DTYPES["BF16"], (4, 8))
            >>> codes = Codes(Extent(Path("f"), 0, 32), 8, Steps(256, 64, 8), b"")
            >>> weight = Quantised(spec, ("w",), 32, (4, 8), codes, Grid(4, 8, Steps(0, 0, 0)))
            >>> [(box.top, box.bottom, box.left, box.right) for box in weight.boxes(5, 28)]
            [(0, 1, 5, 8), (1, 3, 0, 8), (3, 4, 0, 4)]
        """
        rows, columns = self.matrix
        while start < stop:
            matrix, rest = divmod(start, rows * columns)
            row, column = divmod(rest, columns)
            if column or stop - start < columns:
                box = Box(matrix, row, row + 1, column, min(columns, column + stop - start))
            else:
                box = Box(matrix, row, row + min(rows - row, (stop - start) // columns), 0, columns)
            yield box
            start += (box.bottom - box.top) * (box.right - box.left)

    def windows(self, start: int, stop: int) -> Iterator[Box]:
        """The same entries in any order, as rectangles whose codes lie close together."""
        waiting = list(self.boxes(start, stop))
        while waiting:
            box = waiting.pop()
            first, last = self.codes.window(box)
            if last - first <= _WINDOW:
                yield box
            else:
                by_rows = self.codes.steps.row > self.codes.steps.column
                thin = (box.bottom - box.top if by_rows else box.right - box.left) == 1
                waiting.extend(box.halves(by_rows is not thin))
