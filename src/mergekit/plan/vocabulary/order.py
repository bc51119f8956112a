"""Which rows of the models' vocabulary matrices each row of the output is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergekit.plan.views import RowMap, View, aligned

_ABSENT = -1
_Places = NDArray[np.int64]


class Row(NamedTuple):
    """A row of a model's matrices: index of the model, number of the row."""

    model: int
    row: int


@dataclass(frozen=True, slots=True)
class Order:
    """The rows of the output, and where each model has them.

    Parameters:
        rows: model to row of its matrices for each row of the output, -1 where it has none.
        given: row of the output to what the recipe says about it: a row of a model, or None for zeros. It stands for
            the models that lack the row.
        forced: of these rows, those that stand for every model.
        padding: rows behind all others, each the mean of all others.
    """

    rows: Mapping[int, _Places]
    given: Mapping[int, Row | None] = field(default_factory=dict)
    forced: frozenset[int] = frozenset()
    padding: int = 0

    @property
    def height(self) -> int:
        """Rows of the output."""
        return next(iter(self.rows.values())).size + self.padding

    def shortened(self, count: int) -> Order:
        """The order without some of the last rows."""
        if not count:
            return self
        least = self.height - self.padding - count
        given = {row: source for row, source in self.given.items() if row < least}
        rows = {model: own[:least] for model, own in self.rows.items()}
        return Order(rows, given, frozenset(row for row in self.forced if row < least), self.padding)

    def apply(self, models: Sequence[int], base: int | None, views: Sequence[View], axis: int = 0) -> list[View]:
        """The matrices of several models in the order of the output.

        A row that a model lacks is, in this order: what the recipe says; the one row there is; the base's; the mean
        of those that have it; zeros.

        Parameters:
            models: of each matrix.
            base: which of the models is the base, or None.
            views: the matrices, one row for each token of their models.
            axis: which counts tokens: 0, or 1 of one line.

        Raises:
            KeyError: the recipe takes a row from a model that is not among `models`.
        """
        heights = [view.spec.shape[axis] for view in views]
        own = np.stack([self.rows[model] for model in models])
        own[own >= np.array(heights)[:, None]] = _ABSENT
        stand_in = self._stand_in(models, base, own)
        forced = np.zeros(own.shape[1], bool)
        forced[list(self.forced)] = True
        maps = [_map(place, np.where(forced, _ABSENT, own[place]), stand_in) for place in range(len(models))]
        padded = [RowMap(each.starts, each.matrices, each.origins, self.padding) for each in maps]
        return [aligned(tuple(views), place, each, axis) for place, each in enumerate(padded)]

    def _stand_in(self, models: Sequence[int], base: int | None, own: _Places) -> RowMap:
        """What stands for a row where a model lacks it: the same for every model."""
        origins, terms = own.copy(), own != _ABSENT
        if base in models:
            place = models.index(base)
            known = terms[place].copy()
            terms[:, known] = False
            terms[place, known] = True
        for row, source in self.given.items():
            terms[:, row] = False
            if source is not None:
                if source.model not in models:
                    raise KeyError(source.model)
                place = models.index(source.model)
                terms[place, row], origins[place, row] = True, source.row
        rows, matrices = np.nonzero(terms.T)
        starts = np.concatenate([[0], np.cumsum(terms.sum(axis=0))])
        return RowMap(starts, matrices, origins.T[rows, matrices])


def _map(place: int, own: _Places, stand_in: RowMap) -> RowMap:
    """A model's own rows, and others where it has none."""
    has, counts = own != _ABSENT, np.diff(stand_in.starts)
    starts = np.concatenate([[0], np.cumsum(np.where(has, 1, counts))])
    matrices, origins = np.empty((2, int(starts[-1])), np.int64)
    mine = np.zeros(matrices.size, bool)
    mine[starts[:-1][has]] = True
    matrices[mine], origins[mine] = place, own[has]
    used = np.repeat(~has, counts)
    matrices[~mine], origins[~mine] = stand_in.matrices[used], stand_in.origins[used]
    return RowMap(starts, matrices, origins)


def by_number(heights: Mapping[int, int], height: int) -> Order:
    """The order in which every row keeps its number, cut or filled up to a height.

    Parameters:
        heights: model to rows of its matrices.
        height: of the output.
    """
    numbers = np.arange(height)
    return Order({model: np.where(numbers < own, numbers, _ABSENT) for model, own in heights.items()})


def by_token(
    tokens: Mapping[str, int],
    height: int,
    ids: Mapping[int, Mapping[str, int]],
    heights: Mapping[int, int],
    keepers: Collection[int] = (),
) -> dict[int, _Places]:
    """Where each model has the rows of an output that has a row for each token.

    Parameters:
        tokens: text of each token of the output to its row.
        height: rows of the output.
        ids: model to its own ids by text.
        heights: model to rows of its matrices.
        keepers: models whose ids the output keeps: rows that belong to no token are their rows of the same number.
    """
    found = {}
    taken = np.fromiter(tokens.values(), np.int64, len(tokens))
    free = np.setdiff1d(np.arange(height), taken)
    for model, own in ids.items():
        places = np.fromiter(map(own.get, tokens, repeat(_ABSENT)), np.int64, len(tokens))
        found[model] = np.full(height, _ABSENT, np.int64)
        found[model][taken] = np.where(places < heights[model], places, _ABSENT)
        if model in keepers:
            found[model][free] = np.where(free < heights[model], free, _ABSENT)
    return found
