"""TIES: trim, elect sign, merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mergekit.methods.contract import Array, Block, Method, Needs, PerModel, Raw, Reduction, Stats, parameter
from mergekit.methods.reductions import Kth, Mass

_NO_MASS = 1e-7  # sum of magnitudes that is not scaled


@final
@dataclass(frozen=True, kw_only=True)
class Ties(Method):
    """Trim each task vector to its greatest entries, elect a sign per entry, add up the entries that agree.

    With ``Δ_i = x_i − b`` trimmed to the share `density` of its entries that are greatest by magnitude, and
    ``D_i = w_i · Δ_i``: the elected sign is that of ``Σ_i D_i`` (0 counts as +); an entry of D_i agrees if it has that
    sign; ``y = b + λ · Σ_agree D_i``, the sum divided by ``Σ_agree w_i`` if `normalize` and that is not 0.

    Parameters:
        weight: of each task vector.
        density: share of entries kept, 0 to 1; ``max(1, trunc(density · n))`` of n, ties by lowest index.
        normalize: divide by the weights that agree.
        lambda: factor of the sum.
        rescale: multiply each trimmed task vector to restore its sum of magnitudes.

    Shapes: any; trimming is per tensor. Passes: two or three. Deterministic.
    Differs from the peer: float32 instead of the checkpoint's dtype; exact selection with ties by lowest index.

    Reference: Yadav et al. 2023, "TIES-Merging", arXiv:2306.01708, algorithm 1.
    """

    name: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    needs: ClassVar[Needs] = Needs(base="required")

    weight: PerModel = parameter(1.0, per_model=True, doc="factor of each task vector")
    density: PerModel = parameter(1.0, per_model=True, low=0, high=1, doc="share of entries kept of each task vector")
    normalize: bool = parameter(True, kind="bool", doc="divide by the weights of the models that agree")
    lambda_: float = parameter(1.0, name="lambda", doc="factor of the sum of the task vectors")
    rescale: bool = parameter(False, kind="bool", doc="restore the sum of magnitudes after trimming")

    def reductions(self) -> tuple[Reduction, ...]:
        """The cut of each delta, and its mass on request."""
        cut = Kth("cut", keep=self.density)
        return (cut, Mass("mass", cut="cut")) if self.rescale else (cut,)

    def _factors(self, stats: Stats) -> list[float]:
        """Weights, times what restores the mass: ``A/B`` with A before and B after trimming."""
        if not self.rescale:
            return list(self.weight)
        ratios = [float(whole / kept) if min(whole, kept) >= _NO_MASS else 1.0 for whole, kept in stats["mass"]]
        return [weight * ratio for weight, ratio in zip(self.weight, ratios, strict=True)]

    def merge(self, block: Block, stats: Stats) -> Array:
        """Algorithm 1, on the block."""
        from array_api_compat import array_namespace

        from mergekit.kernels.arrays import trim

        xp = array_namespace(block.rows)
        deltas = trim(block.deltas, stats["cut"].bits, stats["cut"].edges - block.start)  # step 1
        votes = xp.stack([factor * delta for factor, delta in zip(self._factors(stats), deltas, strict=True)])
        elected = sum(votes[i] for i in range(votes.shape[0])) >= 0  # step 2
        agree = xp.where(elected, votes > 0, ~(votes >= 0))  # where there is no number, it must stay so
        total = xp.zeros_like(block.base)
        divisor = xp.zeros_like(block.base)
        for vote, same, weight in zip(votes, agree, self.weight, strict=True):  # step 3
            total = total + vote * same
            divisor = divisor + weight * xp.astype(same, xp.float32)
        if self.normalize:
            total = total / xp.where(divisor == 0, xp.ones_like(divisor), divisor)
        return block.base + self.lambda_ * total

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """All three steps in one pass over entries in registers and first-level cache."""
        from mergekit.kernels.fused import elect_sum

        weights = np.array(self.weight, np.float32)
        factors = np.array(self._factors(stats), np.float32)
        cut = stats["cut"]
        edges = cut.edges - block.start
        elect_sum(block.base, block.models, weights, factors, cut.bits, edges, self.lambda_, self.normalize, out)
