"""What a fine-tune did to one module: read, compared and decomposed, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import DTYPES, DType, Stored, TensorSpec
from mergekit.errors import NonFiniteError
from mergekit.kernels import RAW
from mergekit.lora.decomposition import Goal, decompose
from mergekit.lora.folder import Spool, rounded
from mergekit.lora.pairs import Pair
from mergekit.lora.units import Unit
from mergekit.plan.views import View
from mergekit.report.rooms import Room

Array = NDArray[Any]

_CHUNK = 1 << 20  # entries that are read at a time
_FEW = 4  # rows are held by themselves if no more than one in so many changed


@dataclass(frozen=True, slots=True)
class ThinProduct:
    """A product of two matrices that stands for what was done to a matrix.

    Parameters:
        a: shape (rank, in).
        b: shape (out, rank).
        rank: inner dimension; it may be 0.
    """

    a: Stored
    b: Stored
    rank: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about a unit.

    Parameters:
        unit: the module.
        held: how the adapter holds it: by products, by some rows, whole, or not at all, as nothing changed.
        norm: squared norm of what was done to its weight.
        missed: squared norm of what of that the adapter does not hold.
        products: one for each matrix.
        exact: whether all singular values are known.
        rows: numbers of the rows that are held.
        weight: the rows, or the whole weight.
        bias: of the fine-tune, if it changed or everything is held whole.
        offset: what was added to the bias; None for a module without one.
    """

    unit: Unit
    held: Literal["products", "rows", "whole", "nothing"]
    norm: float
    missed: float = 0.0
    products: tuple[ThinProduct, ...] = ()
    exact: bool = True
    rows: tuple[int, ...] = ()
    weight: Stored | None = None
    bias: Array | None = None
    offset: Array | None = None

    @property
    def rank(self) -> int:
        """The largest of its products."""
        return max((product.rank for product in self.products), default=0)

    @property
    def energy(self) -> float:
        """Share of the squared norm that the adapter holds."""
        return 1 - self.missed / self.norm if self.norm else 1.0


@final
@dataclass(frozen=True, slots=True)
class Measuring:
    """Finds out what was done to modules; any thread may ask.

    Parameters:
        goal: how many singular values are kept.
        exact: use LAPACK's SVD whatever the size.
        distribute: give the roots of the singular values to both factors.
        seed: of random sketches.
        tied: whether the embedding serves as output head.
        spool: takes what is found.
        room: what is read with.
        advance: is told of bytes that were read.
    """

    goal: Goal
    exact: bool
    distribute: bool
    seed: int
    tied: bool
    spool: Spool
    room: Room
    advance: Callable[[int], None]

    def measure(self, number: int, unit: Unit) -> Finding:
        """Read a module of both models and find out what was done to it.

        Parameters:
            number: of the module, another one for each.
            unit: the module.

        Raises:
            NonFiniteError: a model holds NaN or infinity there.
        """
        self.room.turn_to(number)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # it is found in the sums
                bias, offset = self._bias(unit)
                found = self._kept if unit.form in ("vocabulary", "whole") else self._decomposed
                return found(unit, bias, offset)
        except NonFiniteError as error:
            hint = f"`--exclude-regex '^{unit.module}$'`, which leaves the module out"
            raise NonFiniteError(f"`{unit.weight.name}` holds NaN or infinity", hint=hint) from error

    def _bias(self, unit: Unit) -> tuple[Array | None, Array | None]:
        """The bias of the fine-tune if it changed, and what was added to it."""
        if unit.bias is None:
            return None, None
        tuned = self._whole(unit.bias.tuned)
        if unit.bias.base.spec.shape != unit.bias.shape:
            return tuned, None
        offset = tuned - self._whole(unit.bias.base)
        return (tuned if offset.any() else None), offset

    def _whole(self, view: View) -> Array:
        """A small tensor as float32."""
        entries = np.empty(view.spec.count, np.float32)
        view.read(self.room, 0, entries.size, entries)
        self.advance(view.nbytes)
        return entries.reshape(view.spec.shape)

    def _difference(self, pair: Pair, start: int, stop: int) -> Array:
        """Entries of the fine-tune minus those of the base, which ends earlier if it has fewer rows."""
        entries = np.empty(stop - start, np.float32)
        count = max(1, pair.tuned.spec.count)
        for first in range(start, stop, _CHUNK):
            last = min(first + _CHUNK, stop)
            part = entries[first - start : last - start]
            pair.tuned.read(self.room, first, last, part)
            shared = min(last, pair.base.spec.count) - first
            if shared > 0:
                other = self.room.buffer("base of a difference", 4 * shared).view(np.float32)
                pair.base.read(self.room, first, first + shared, other)
                part[:shared] -= other
            self.advance(pair.nbytes * last // count - pair.nbytes * first // count)
        return entries

    def _decomposed(self, unit: Unit, bias: Array | None, offset: Array | None) -> Finding:
        count, outs, ins = unit.matrix
        products, norm, missed, exact = [], 0.0, 0.0, True
        for index in range(count):
            start = index * outs * ins
            entries = self._difference(unit.weight, start, start + outs * ins)
            matrix = entries.reshape(ins, outs).T if unit.inputs_first else entries.reshape(outs, ins)
            seed = crc32(f"{unit.module}/{index}".encode(), self.seed & 0xFFFFFFFF)
            found = decompose(matrix, self.goal, exact=self.exact, seed=seed)
            b, a = found.factors(self.distribute)
            name = f"{unit.module}/{index}"
            products.append(ThinProduct(self.spool.add(f"{name}.a", a), self.spool.add(f"{name}.b", b), found.rank))
            norm, missed = norm + found.total, missed + found.total * (1 - found.energy)
            exact = exact and found.exact
        if any(product.rank for product in products):
            return Finding(unit, "products", norm, missed, tuple(products), exact, bias=bias, offset=offset)
        if bias is not None:
            return self._kept(unit, bias, offset)
        return Finding(unit, "nothing", norm, norm, tuple(products), offset=offset)

    def _kept(self, unit: Unit, bias: Array | None, offset: Array | None) -> Finding:
        changed, norm = self._changes(unit.weight)
        if not changed.any() and bias is None:
            return Finding(unit, "nothing", 0.0)
        rows = tuple(int(row) for row in np.flatnonzero(changed))
        if bias is None and self._by_rows(unit, len(rows)):
            return Finding(unit, "rows", norm, rows=rows, weight=self._copied(unit.weight, rows))
        whole = bias if bias is not None or unit.bias is None else self._whole(unit.bias.tuned)
        return Finding(unit, "whole", norm, weight=self._copied(unit.weight, None), bias=whole, offset=offset)

    def _by_rows(self, unit: Unit, rows: int) -> bool:
        """Whether a weight is held by its rows: few of them, or an embedding that peft keeps tied to the head so."""
        few = _FEW * rows <= unit.weight.shape[0] or (self.tied and unit.weight.place.role == "embedding")
        return few and unit.form == "vocabulary" and len(unit.weight.shape) == 2

    def _changes(self, pair: Pair) -> tuple[Array, float]:
        """Which rows are not the same in both models, or only in one, and the squared norm of the difference."""
        rows, width = _lines(pair.shape)
        changed, norm = np.ones(rows, np.bool_), 0.0
        for first, last in _steps(rows, width):
            lines = self._difference(pair, first * width, last * width).reshape(last - first, width)
            changed[first:last] = lines.any(axis=1)
            norm += float(np.square(lines, dtype=np.float64).sum())
        if not np.isfinite(norm):
            raise NonFiniteError(f"`{pair.name}` holds NaN or infinity")
        changed[_lines(pair.base.spec.shape)[0] :] = True
        return changed, norm

    def _copied(self, pair: Pair, rows: tuple[int, ...] | None) -> Stored:
        """Rows of the fine-tune, or all of it, with the dtype that they have there."""
        shape, width = pair.shape, _lines(pair.shape)[1]
        dtype = _storable(pair.tuned.spec.dtype)
        kept = (len(rows), *shape[1:]) if rows is not None else shape
        stored = self.spool.reserve(TensorSpec(f"{pair.name}/kept", dtype, kept))
        runs = _runs(rows) if rows is not None else [(0, _lines(shape)[0])]
        place = 0
        for first, last in runs:
            for start, stop in _steps(last - first, width):
                entries = np.empty((stop - start) * width, np.float32)
                pair.tuned.read(self.room, (first + start) * width, (first + stop) * width, entries)
                self.spool.write(stored, place * dtype.bits // 8, rounded(entries, dtype))
                place += entries.size
        return stored


def _storable(dtype: DType) -> DType:
    return dtype if dtype.name in RAW else DTYPES["F32"]


def _lines(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows of a tensor and their entries; a vector has rows of one entry."""
    rows = shape[0] if shape else 1
    return rows, int(np.prod(shape[1:], dtype=np.int64))


def _steps(rows: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK // max(1, width))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _runs(rows: tuple[int, ...]) -> list[tuple[int, int]]:
    """Rows that follow each other, as first and last plus one."""
    found: list[tuple[int, int]] = []
    for row in rows:
        if found and found[-1][1] == row:
            found[-1] = (found[-1][0], row + 1)
        else:
            found.append((row, row + 1))
    return found
