"""SCE: select, calculate, erase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from mergekit.methods.contract import Array, Block, Method, Needs, PerModel, Raw, Reduction, Stats, parameter
from mergekit.methods.surveys import Numbers, Survey, Surveyed, SurveyedKth, Tally, collected_bytes


@final
class Spread(Surveyed):
    """Variance of an entry over the models, times the square of their number."""

    def of(self, block: Block) -> Numbers:
        """The scores."""
        scores = np.empty(block.rows.shape[1], np.float32)
        block.reducers.spread(block.models, scores)
        return scores


def _differing(block: Block, picked: slice) -> tuple[Numbers, Numbers]:
    """How many entries are not the same in all models, and some scores."""
    scores = np.empty(block.rows.shape[1], np.float32)
    return np.array([block.reducers.spread(block.models, scores)]), scores[picked].copy()


@final
@dataclass(frozen=True, kw_only=True)
class Sce(Method):
    """Select the entries on which the models differ most, weigh the models by what is left of them, erase minorities.

    Select: with ``Δ_i = x_i − b``, of the m entries whose variance over the models is not 0 the ``trunc(q · m)`` of
    greatest variance are kept in all Δ_i, the others set to 0; all are kept if q is 1. Calculate:
    ``c_i = Σ Δ_i² / Σ_i Σ Δ_i²``, sums over the tensor. Erase: an entry of Δ_i agrees if it has the sign of ``Σ_i Δ_i``
    (0 counts as +). ``y = b + Σ_agree c_i · Δ_i / Σ_agree c_i``, and the base where nothing agrees.

    Parameters:
        select_topk: q, share of the entries that are kept, ties by lowest index; below 1, one model alone gives the
            base, as its variance is 0.

    Shapes: any; selection and weights are per tensor. Passes: two or four (with `select_topk` below 1);
    more where many variances are equal. Deterministic.
    Differs from the peer: float32 instead of the checkpoint's dtype; exact selection with ties by lowest index; models
    are weighed however small the deltas are (the peer weighs them equally below a mean square of 1e-6, and divides by
    no less than 1e-6).

    Reference: Wan et al. 2024, "FuseChat: Knowledge Fusion of Chat Models", arXiv:2408.07990.

    Example:
        >>> import numpy as np
        >>> Sce(select_topk=1.0).coefficients({"energies": np.array([3.0, 1.0])})
        (0.75, 0.25)
    """

    name: ClassVar[str] = "sce"
    title: ClassVar[str] = "SCE"
    reference: ClassVar[str] = "https://arxiv.org/abs/2408.07990"
    needs: ClassVar[Needs] = Needs(base="required")

    select_topk: float = parameter(1.0, low=0, high=1, doc="share of the entries that differ which is kept")

    def held(self, shape: tuple[int, ...]) -> int:
        """Scores that are collected around the order statistics."""
        return collected_bytes(shape, ranks=1)

    def reductions(self) -> tuple[Reduction, ...]:
        """How many entries differ, the cut of their variance, and what is left of each delta."""
        energies = Tally("energies", self._energies)
        if self.select_topk >= 1:
            return (energies,)
        differing = Survey("differing", _differing, fold=lambda counts: np.sum(counts, axis=0))
        return (differing, SurveyedKth("cut", "differing", lambda _: Spread(), self._ranks), energies)

    def _ranks(self, entries: int, stats: Stats) -> Sequence[int]:
        del entries
        return (int(self.select_topk * stats["differing"].found[0]),)

    def _cut(self, block: Block, stats: Stats) -> tuple[int, int]:
        """The least score kept, as bits, and the last of its ties; a score of 0 where nothing is selected."""
        if "cut" not in stats:
            return 0, block.rows.shape[1]
        return int(stats["cut"].bits[0, 0]), int(stats["cut"].edges[0, 0]) - block.start

    def _energies(self, block: Block, stats: Stats) -> Numbers:
        sums = np.empty((block.grains, block.models.shape[0]))
        cut, edge = self._cut(block, stats)
        block.reducers.spread_energies(block.base, block.models, cut, edge, block.target.grain, sums)
        return sums

    def coefficients(self, stats: Stats) -> PerModel:
        """The c_i. Only a total of exactly 0 has no shares: there is nothing to weigh then, as no delta is left."""
        energies = stats["energies"]
        total = energies.sum()
        with np.errstate(invalid="ignore"):  # of broken inputs
            shares = np.full_like(energies, 1 / len(energies)) if total == 0 else energies / total
        return tuple(shares.tolist())

    def merge(self, block: Block, stats: Stats) -> Array:
        """The three steps, on the block."""
        from array_api_compat import array_namespace

        from mergekit.kernels.arrays import selected

        xp = array_namespace(block.rows)
        kept = selected(block.models, *self._cut(block, stats))
        deltas = block.deltas
        elected = sum(deltas[i] for i in range(deltas.shape[0])) >= 0
        agree = xp.where(elected, deltas > 0, ~(deltas >= 0))  # where there is no number, it must stay so
        total = xp.zeros_like(block.base)
        divisor = xp.zeros_like(block.base)
        for delta, same, share in zip(deltas, agree, self.coefficients(stats), strict=True):
            total = total + xp.where(same, share * delta, xp.zeros_like(delta))
            divisor = divisor + share * xp.astype(same, xp.float32)
        mean = total / xp.where(divisor == 0, xp.ones_like(divisor), divisor)
        return block.base + xp.where(kept, mean, xp.zeros_like(mean))

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """The three steps in one pass."""
        from mergekit.kernels.fused import spread_mean

        shares: Any = np.array(self.coefficients(stats), np.float32)
        spread_mean(block.base, block.models, shares, *self._cut(block, stats), out)
