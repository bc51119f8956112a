"""Sums over whole tensors, taken grain by grain: the same to the last bit, however a tensor was cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mergekit.methods.contract import Array, Block, Reduction, Search, Stats, Target

Numbers = NDArray[Any]

GROUP = 512
"""Grains whose sums are joined: counted from the tensor's first grain, so that joining does not depend on cuts."""


def exact_sums(parts: Sequence[Numbers]) -> Numbers:
    """Sum grain sums over the grains, correctly rounded, whatever the order and the cuts.

    Parameters:
        parts: arrays of shape (grains, …), all of the same trailing shape.
    """
    stacked = np.concatenate(parts)
    flat = stacked.reshape(len(stacked), math.prod(stacked.shape[1:]))
    return np.array([_exact_sum(column) for column in flat.T]).reshape(stacked.shape[1:])


def _exact_sum(numbers: Numbers) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # infinities of both signs, or a sum beyond all numbers
        return math.nan


def added(sums: Numbers) -> Numbers:
    """Sums of several grains as one, shape (…,)."""
    total: Numbers = sums.sum(axis=0)
    return total


@final
@dataclass(slots=True)
class Heap:
    """Sums of consecutive grains, those of whole groups joined.

    Parameters:
        first: index of the first grain in `rest`.
        rest: sums of grains that are not joined yet, in ascending order.
        groups: joined sums by the index of their group.
        head: grains before the first whole group, which another worker may have begun: index and sums.
    """

    first: int = -1
    rest: Numbers = field(default_factory=lambda: np.empty(0))
    groups: dict[int, Numbers] = field(default_factory=dict)
    head: tuple[int, Numbers] | None = None

    def push(self, index: int, sums: Numbers, join: Callable[[Numbers], Numbers]) -> None:
        """Take the sums of the next grains."""
        self.rest = np.concatenate([self.rest, sums]) if self.rest.size else sums
        self.first = index if self.first < 0 else self.first
        if self.head is None and self.first % GROUP and self.first + len(self.rest) >= -(-self.first // GROUP) * GROUP:
            self.head = (self.first, self._take(-self.first % GROUP))
        while self.first % GROUP == 0 and len(self.rest) >= GROUP:
            group = self.first // GROUP
            self.groups[group] = join(self._take(GROUP))

    def _take(self, count: int) -> Numbers:
        taken, self.rest = self.rest[:count].copy(), self.rest[count:].copy()
        self.first += count
        return taken

    def loose(self) -> list[tuple[int, Numbers]]:
        """Sums that are not joined, with the index of their first grain."""
        return [part for part in (self.head, (self.first, self.rest)) if part is not None and len(part[1])]


def _settled(heaps: Sequence[Heap], join: Callable[[Numbers], Numbers]) -> list[Numbers]:
    """One array (1, …) for each group of grains, in order."""
    groups = {group: sums for heap in heaps for group, sums in heap.groups.items()}
    loose: dict[int, list[tuple[int, Numbers]]] = {}
    for index, sums in (part for heap in heaps for part in heap.loose()):
        loose.setdefault(index // GROUP, []).append((index, sums))
    for group, parts in loose.items():
        groups[group] = join(np.concatenate([sums for _, sums in sorted(parts, key=lambda part: part[0])]))
    return [groups[group][None] for group in sorted(groups)]


@final
@dataclass(slots=True)
class GrainSums(Search):
    """One sweep that collects sums per grain, and joins them group by group, so that few are held."""

    sums: Callable[[Block], Numbers]
    fold: Callable[[Sequence[Numbers]], Numbers]
    join: Callable[[Numbers], Numbers]
    total: Numbers | None = None
    done: bool = False

    @classmethod
    def start(
        cls,
        sums: Callable[[Block], Numbers],
        target: Target,
        sample: Callable[[], Sequence[Block]],
        fold: Callable[[Sequence[Numbers]], Numbers] = exact_sums,
        join: Callable[[Numbers], Numbers] = added,
    ) -> GrainSums:
        """A search that is over already where there is nothing to sweep.

        Parameters:
            sums: sums of a block, shape (grains, …), float64.
            target: the tensor.
            sample: as :meth:`Reduction.begin` is given it.
            fold: from the sums of all groups of grains to the result; must not depend on their order or cuts.
            join: from the sums of the grains of a group, shape (grains, …), to those of the group.
        """
        if target.count:
            return cls(sums, fold, join)
        return cls(sums, fold, join, fold([sums(block) for block in sample()]), done=True)

    def scratch(self) -> Heap:
        """Sums of one worker."""
        return Heap()

    def visit(self, block: Block, scratch: Heap) -> None:
        """Sum a block up."""
        scratch.push(block.start // block.target.grain, self.sums(block), self.join)

    def close(self, scratches: Sequence[Heap]) -> None:
        """Sum everything up."""
        with np.errstate(invalid="ignore", over="ignore"):  # what is broken in the inputs is so in the sums
            self.total = self.fold(_settled(scratches, self.join))
        self.done = True

    def result(self) -> Numbers:
        """The sums over the tensor, without the axis of grains."""
        assert self.total is not None
        return self.total


@final
@dataclass(frozen=True, slots=True)
class Gram(Reduction):
    """All dot products of the rows, or of the deltas: ``G[i, j] = Σ_n r_i[n] · r_j[n]``, float64, shape (k, k).

    Parameters:
        name: key in `stats`.
        of: "rows" (the base first, if there is one) or "deltas".
    """

    name: str
    of: Literal["rows", "deltas"] = "rows"

    def begin(self, target: Target, sample: Callable[[], Sequence[Block]], stats: Stats) -> Search:
        """Start on a tensor."""
        del stats
        return GrainSums.start(self._sums, target, sample)

    def _sums(self, block: Block) -> Numbers:
        rows = block.rows if self.of == "rows" else block.models
        sums = np.empty((block.grains, rows.shape[0], rows.shape[0]))
        origin = block.rows[0, :0] if self.of == "rows" else block.base
        block.reducers.gram(origin, rows, block.target.grain, sums)
        return sums


@final
@dataclass(frozen=True, slots=True)
class Norms(Reduction):
    """Norms of each delta, whole and thinned: float64, shape (models, 3, 2): L1, L2 and greatest magnitude.

    Parameters:
        name: key in `stats`.
        models: how many.
        votes: what is kept of the delta of a model, shape (n,), in the block's library; float32.
    """

    name: str
    models: int
    votes: Callable[[Block, Stats, int], Array]

    def begin(self, target: Target, sample: Callable[[], Sequence[Block]], stats: Stats) -> Search:
        """Start on a tensor."""

        def sums(block: Block) -> Numbers:
            found = np.zeros((block.grains, self.models, 3, 2))
            for index in range(self.models):
                own = np.empty((block.grains, 3, 2))
                votes = self.votes(block, stats, index)
                block.reducers.norms(votes, block.models[index], block.base, target.grain, own)
                found[:, index] = own
            return found

        return GrainSums.start(sums, target, sample, _folded, _joined)


def _joined(sums: Numbers) -> Numbers:
    """Sums and greatest values of several grains."""
    total = added(sums)
    total[:, 2] = sums[:, :, 2].max(axis=0, initial=0)
    return total


def _folded(parts: Sequence[Numbers]) -> Numbers:
    """Sums and greatest values over the groups, as norms."""
    total = exact_sums(parts)
    total[:, 1] = np.sqrt(total[:, 1])
    total[:, 2] = np.concatenate(parts)[:, :, 2].max(axis=0, initial=0)
    return total
