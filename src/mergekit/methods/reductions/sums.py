"""Sums over whole tensors, taken grain by grain: the same to the last bit, however a tensor was cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mergekit.methods.contract import Array, Block, Reduction, Search, Stats, Target

Numbers = NDArray[Any]


def exact_sums(parts: Sequence[Numbers]) -> Numbers:
    """Sum grain sums over the grains, correctly rounded, whatever the order and the cuts.

    Parameters:
        parts: arrays of shape (grains, …), all of the same trailing shape.
    """
    stacked = np.concatenate(parts)
    flat = stacked.reshape(len(stacked), math.prod(stacked.shape[1:]))
    return np.array([math.fsum(column) for column in flat.T]).reshape(stacked.shape[1:])


@final
@dataclass(slots=True)
class GrainSums(Search):
    """One sweep that collects sums per grain."""

    sums: Callable[[Block], Numbers]
    fold: Callable[[Sequence[Numbers]], Numbers]
    total: Numbers | None = None
    done: bool = False

    @classmethod
    def start(
        cls,
        sums: Callable[[Block], Numbers],
        target: Target,
        sample: Callable[[], Sequence[Block]],
        fold: Callable[[Sequence[Numbers]], Numbers] = exact_sums,
    ) -> GrainSums:
        """A search that is over already where there is nothing to sweep.

        Parameters:
            sums: sums of a block, shape (grains, …), float64.
            target: the tensor.
            sample: as :meth:`Reduction.begin` is given it.
            fold: from the sums of all blocks to the result; must not depend on their order or cuts.
        """
        if target.count:
            return cls(sums, fold)
        return cls(sums, fold, fold([sums(block) for block in sample()]), done=True)

    def scratch(self) -> list[Numbers]:
        """One array for each block."""
        return []

    def visit(self, block: Block, scratch: list[Numbers]) -> None:
        """Sum a block up."""
        scratch.append(self.sums(block))

    def close(self, scratches: Sequence[list[Numbers]]) -> None:
        """Sum everything up."""
        self.total = self.fold([part for scratch in scratches for part in scratch])
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
        if self.of == "rows":
            block.reducers.gram(rows, block.target.grain, sums)
        else:
            block.reducers.gram_deltas(block.base, rows, block.target.grain, sums)
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

        return GrainSums.start(sums, target, sample, _folded)


def _folded(parts: Sequence[Numbers]) -> Numbers:
    """Sums and greatest values over the grains, as norms."""
    total = exact_sums(parts)
    total[:, 1] = np.sqrt(total[:, 1])
    total[:, 2] = np.concatenate(parts)[:, :, 2].max(axis=0, initial=0)
    return total
