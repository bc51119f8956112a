"""What a mixture is made of besides stored tensors: cut and joined matrices, noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from mergekit.checkpoint import DTYPES, Extent, TensorSpec
from mergekit.plan.tensors import promoted
from mergekit.plan.views import Access, Held, Joined, Pieces, View
from mergekit.plan.views.base import Composed, Raw, Stretch

_CHUNK = 1 << 16  # entries that noise is drawn for at a time
_ROOM = 8 * 8 * _CHUNK  # bytes of it


def filled(name: str, shape: tuple[int, ...], value: float = 0.0) -> Held:
    """A tensor with one number in every entry, which is stored once."""
    spec = TensorSpec(name, DTYPES["F32"], shape)
    return Held(spec, np.broadcast_to(np.float32(value), (spec.count,)))


def rows_of(view: View, first: int, count: int) -> View:
    """Some consecutive rows of a tensor.

    Parameters:
        view: the tensor.
        first: the first of the rows.
        count: how many.
    """
    width = view.spec.count // max(1, view.spec.shape[0])
    spec = TensorSpec(view.spec.name, view.spec.dtype, (count, *view.spec.shape[1:]))
    if isinstance(view, Pieces):
        return Pieces(spec, tuple(view.extents(first * width, (first + count) * width)), view.names)
    return Stretch(view, first * width, spec, view.names)


def stacked(views: Sequence[View], shape: tuple[int, ...]) -> View:
    """Tensors of one size laid end to end.

    Parameters:
        views: in their order.
        shape: of the whole.
    """
    dtype = promoted([view.spec.dtype for view in views])
    spec = TensorSpec(views[0].spec.name, dtype, shape)
    names = tuple(name for view in views for name in view.names)
    stored = [view for view in views if isinstance(view, Pieces) and view.spec.dtype == dtype]
    if len(stored) == len(views):
        return Pieces(spec, tuple(piece for view in stored for piece in view.pieces), names)
    return Joined(spec, tuple(views), names)


def beside(views: Sequence[View]) -> View:
    """Matrices of as many rows, side by side."""
    if len(views) == 1:
        return views[0]
    rows = views[0].spec.shape[0]
    dtype = promoted([view.spec.dtype for view in views])
    width = sum(view.spec.shape[1] for view in views)
    names = tuple(name for view in views for name in view.names)
    return Beside(TensorSpec(views[0].spec.name, dtype, (rows, width)), tuple(views), names)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Beside(Composed):
    """Matrices side by side.

    Parameters:
        spec: of the whole.
        views: the matrices, all with as many rows.
        names: the stored tensors of all.
    """

    spec: TensorSpec
    views: tuple[View, ...]
    names: tuple[str, ...]

    def _runs(self, start: int, stop: int) -> Iterator[tuple[View, int, int, int]]:
        """Stretches of the matrices that make up [start, stop): the matrix, first and last entry, and the place."""
        width = self.spec.shape[1]
        for row in range(start // width, -(-stop // width)):
            place = row * width
            for view in self.views:
                own = view.spec.shape[1]
                first, last = max(start, place), min(stop, place + own)
                if first < last:
                    begin = row * own - place
                    yield view, begin + first, begin + last, first
                place += own

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Of each matrix, the rows that have entries there."""
        first, last = start // self.spec.shape[1], -(-stop // self.spec.shape[1])
        for view in self.views:
            own = view.spec.shape[1]
            yield from view.extents(first * own, last * own)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """Row by row, matrix by matrix."""
        for view, first, last, place in self._runs(start, stop):
            view.read(access, first, last, into[place - start : place - start + last - first])


@final
@dataclass(frozen=True, slots=True, eq=False)
class Altered(View):
    """A tensor with noise, times a factor: ``(x + noise · ε) · factor``, ε normal.

    ε is a function of the seed, of the stream's name and of the entry's index, and of nothing else.

    Parameters:
        view: x.
        noise: standard deviation.
        factor: what the sum is multiplied by.
        stream: name of the noise.
        seed: of the noise.
    """

    view: View
    noise: float
    factor: float
    stream: str
    seed: int

    @property
    def spec(self) -> TensorSpec:  # type: ignore[override]
        """That of x."""
        return self.view.spec

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of x."""
        return self.view.names

    @property
    def nbytes(self) -> int:
        """Those of x."""
        return self.view.nbytes

    @property
    def kept_bytes(self) -> int:
        """Those of x, and room for noise."""
        return self.view.kept_bytes + _ROOM

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Those of x."""
        return self.view.extents(start, stop)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """x, and then what is done to it."""
        self.view.read(access, start, stop, into)
        if self.noise:
            for first in range(start, stop, _CHUNK):
                part = into[first - start : min(first + _CHUNK, stop) - start]
                part += np.float32(self.noise) * normal(self.seed, self.stream, first, part.size)
        into *= np.float32(self.factor)


def normal(seed: int, stream: str, start: int, count: int) -> Raw:
    """Normal numbers, float32, for the entries of a stream from `start` on, by the method of Box and Muller.

    Example:
        >>> bool((normal(0, "a", 5, 3) == normal(0, "a", 0, 8)[5:]).all())
        True
    """
    from mergekit.kernels.fused import noise
    from mergekit.kernels.streams import BITS, stream_keys

    drawn = np.empty((2, count), np.uint32)
    for row, numbers in enumerate(drawn):
        noise(start, stream_keys(seed, stream, row), numbers)
    uniform = (drawn + 0.5) / 2.0**BITS
    found: Raw = (np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * np.pi * uniform[1])).astype(np.float32)
    return found
