"""Reinforced agent merging that strengthens what single models changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mergekit.methods.agents import AgentMerge
from mergekit.methods.contract import Block, Needs, PerModel, Reduction, Stats, parameter
from mergekit.methods.surveys import Numbers, Tally


@final
@dataclass(frozen=True, kw_only=True)
class RamPlusTL(AgentMerge):
    """Strengthen what a single model changed, the more of its changes are shared, and average what several changed.

    As `ram`, with the entries that only the model i changed multiplied by ``λ_i = 1 + r · min(ρ_i, α)``, where ``ρ_i``
    is the number of its changed entries that others changed too, divided by the number of those that only it changed.

    Parameters:
        r: how much stronger, at most, per unit of α.
        alpha: bound of the ratio ρ.
        epsilon: magnitude up to which a delta counts as no change, and is left out.

    Shapes: any; entries are counted per tensor. Passes: two. Deterministic.
    Differs from the peer: float32 arithmetic throughout, and a result in the recipe's dtype.

    Reference: Yuan et al. 2026, "Behavior Knowledge Merge in Reinforced Agentic Models", arXiv:2601.13572.

    Example:
        >>> import numpy as np
        >>> stats = {"overlaps": np.array([[4.0, 1.0], [2.0, 8.0]])}  # alone and shared, of two models
        >>> RamPlusTL(r=0.5, alpha=2.0, epsilon=1e-5).factors(stats, 2)
        (1.125, 2.0)
    """

    name: ClassVar[str] = "ramplus_tl"
    title: ClassVar[str] = "Reinforced Agent Merging Plus (Tensor-Local)"
    reference: ClassVar[str] = "https://arxiv.org/abs/2601.13572"
    needs: ClassVar[Needs] = Needs(base="required")

    r: float = parameter(0.1, low=0, doc="how much what a single model changed is strengthened")
    alpha: float = parameter(0.2, low=0, doc="bound of the ratio of shared to unshared changes")
    epsilon: float = parameter(1e-5, low=0, doc="greatest magnitude of a delta that counts as no change")

    def reductions(self) -> tuple[Reduction, ...]:
        """How many entries each model changed alone, and together with others."""
        return (Tally("overlaps", self._overlaps),)

    def _overlaps(self, block: Block, stats: Stats) -> Numbers:
        del stats
        counts = np.empty((1, block.models.shape[0], 2))
        block.reducers.overlaps(block.base, block.models, self.epsilon, counts[0])
        return counts

    def factors(self, stats: Stats, models: int) -> PerModel:
        """The λ_i; of a model without unshared changes, where it multiplies nothing, with one."""
        del models
        ratios = [float(shared) / max(float(alone), 1.0) for alone, shared in stats["overlaps"]]
        return tuple(1 + self.r * min(ratio, self.alpha) for ratio in ratios)
