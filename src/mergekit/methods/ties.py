"""TIES: trim, elect sign, merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.contract import Needs, parameter
from mergekit.methods.delta_sum import DeltaSum
from mergekit.methods.reductions import trimmed


@final
@dataclass(frozen=True, kw_only=True)
class Ties(DeltaSum):
    """Trim each task vector to its greatest entries, elect a sign per entry, add up the entries that agree.

    With ``Δ_i = x_i − b`` trimmed to the share `density` of its entries that are greatest by magnitude, and
    ``D_i = w_i · Δ_i``: the elected sign is that of ``Σ_i D_i``, or of ``Σ_i sign(D_i)`` if models are counted (0
    counts as +); an entry of D_i agrees if it has that sign; ``y = b + λ · Σ_agree D_i``, the sum divided by
    ``Σ_agree w_i`` if `normalize` and that is not 0.

    Parameters:
        weight: of each task vector.
        density: share of entries kept, 0 to 1; ``max(1, trunc(density · n))`` of n, ties by lowest index.
        normalize: divide by the weights that agree.
        lambda: factor of the sum.
        consensus_method: sum (the default), or count to give each model one vote for each entry.
        rescale: multiply each trimmed task vector to restore its norm.
        rescale_norm: which norm `rescale` restores: l1 (the default), l2 or linf.

    Shapes: any; trimming is per tensor. Passes: one without trimming, else two or
    three, and one more with `rescale`. Deterministic.
    Differs from the peer: float32 instead of the checkpoint's dtype; exact selection with ties by lowest index.

    Reference: Yadav et al. 2023, "TIES-Merging", arXiv:2306.01708, algorithm 1.
    """

    name: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    needs: ClassVar[Needs] = Needs(base="required")
    elects: ClassVar[bool] = True

    normalize: bool = parameter(True, kind="bool", doc="divide by the weights of the models that agree")
    consensus_method: str = parameter(
        "sum", kind="str", choices=("sum", "count"), doc="elect the sign of the sum of entries, or that of most"
    )

    @property
    def adds_votes(self) -> bool:
        """Unless models are counted."""
        return self.consensus_method == "sum"

    def band(self, entries: int, model: int) -> tuple[int, int] | None:
        """The greatest entries."""
        return (trimmed(entries, self.density[model]), 0) if self.density[model] < 1 else None
