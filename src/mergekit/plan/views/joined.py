"""Tensors one after the other as if they were one, of which some are computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from mergekit.checkpoint import Extent, TensorSpec
from mergekit.plan.views.base import Access, Composed, Raw, View


@final
@dataclass(frozen=True, slots=True)
class Joined(Composed):
    """Several views of one shape, laid end to end.

    Parameters:
        spec: dtype and shape as a whole, and the name of the first.
        views: in their order.
        names: the stored tensors of all.
    """

    spec: TensorSpec
    views: tuple[View, ...]
    names: tuple[str, ...]

    def _parts(self, start: int, stop: int) -> Iterator[tuple[View, int, int, int]]:
        """Views with entries in [start, stop): the view, its first and last entry there, and where it begins."""
        size = self.views[0].spec.count
        for place in range(start // size, -(-stop // size)):
            begin = place * size
            yield self.views[place], max(start - begin, 0), min(stop - begin, size), begin

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Those of the views that have entries there."""
        for view, first, last, _ in self._parts(start, stop):
            yield from view.extents(first, last)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """View by view."""
        for view, first, last, begin in self._parts(start, stop):
            view.read(access, first, last, into[begin + first - start : begin + last - start])
