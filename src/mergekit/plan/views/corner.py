"""The corner of a tensor: its first entries along every axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from mergekit.checkpoint import Extent, TensorSpec
from mergekit.plan.views.base import Access, Excerpt, Raw, View
from mergekit.plan.views.pieces import Pieces
from mergekit.plan.views.strided import Strided, boxes


def corner(view: View, shape: tuple[int, ...]) -> View:
    """The first entries of a tensor along every axis.

    What is stored in one piece, or with strides, is read with strides.

    Parameters:
        view: the tensor.
        shape: of its corner, with as many dimensions, none of them longer.
    """
    whole = view.spec.shape
    if shape == whole:
        return view
    spec = TensorSpec(view.spec.name, view.spec.dtype, shape)
    if isinstance(view, Strided):
        return replace(view, spec=spec)
    if isinstance(view, Pieces) and len(view.pieces) == 1:
        if shape[1:] == whole[1:]:
            return view.rows(shape[0])
        return Strided(spec, view.pieces[0], _steps(whole), view.names)
    return Corner(view, spec, view.names)


def _steps(shape: Sequence[int]) -> tuple[int, ...]:
    """Entries from one to the next along each dimension, in row-major order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@final
@dataclass(frozen=True, slots=True)
class Corner(Excerpt):
    """The corner of a tensor that is computed or lies in several pieces.

    Parameters:
        view: the whole.
        spec: what is left of it.
        names: the stored tensors.
    """

    view: View
    spec: TensorSpec
    names: tuple[str, ...]

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Those of the whole from the first of the entries [start, stop) to the last."""
        runs = list(self._runs(start, stop))
        if runs:
            yield from self.view.extents(runs[0][0], runs[-1][1])

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """One run after the other from the whole."""
        for first, last in self._runs(start, stop):
            self.view.read(access, first, last, into[: last - first])
            into = into[last - first :]

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The entries [start, stop) as stretches of the whole."""
        whole, steps = self.view.spec.shape, _steps(self.view.spec.shape)
        for box in boxes(self.spec.shape, start, stop):
            ends = [axis for axis in range(len(whole)) if box.shape[axis] < whole[axis]]
            axis = ends[-1] if ends else 0  # behind it the box is as long as the whole
            length = math.prod(box.shape[axis:])
            for outer in np.ndindex(box.shape[:axis]):
                index = np.add(box.first, (*outer, *[0] * (len(whole) - axis)))
                begin = int(np.dot(index, steps))
                yield begin, begin + length
