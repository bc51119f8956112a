"""Reinforced agent merging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.agents import AgentMerge
from mergekit.methods.contract import Needs, PerModel, Stats, parameter


@final
@dataclass(frozen=True, kw_only=True)
class Ram(AgentMerge):
    """Keep what a single model changed, and average what several models changed.

    With ``Δ_i = x_i − b`` and c the number of models with ``|Δ_i| > ε``, at each entry:
    ``y = b + Σ_changed Δ_i / max(c, 1)``.

    Parameters:
        epsilon: magnitude up to which a delta counts as no change, and is left out.

    Shapes: any. Passes: one. Deterministic. Differs from the peer: float32 instead of the checkpoint's dtype.

    Reference: Yuan et al. 2026, "Behavior Knowledge Merge in Reinforced Agentic Models", arXiv:2601.13572.

    Example:
        >>> import numpy as np
        >>> from mergekit.kernels import arrays
        >>> from mergekit.methods import Block, Target
        >>> rows = np.array([[0, 0, 0], [3, 3, 0], [1, 0, 0]], np.float32)  # the base and two models
        >>> Ram(epsilon=0.5).merge(Block(rows, True, 0, arrays, Target("w", (3,))), {})
        array([2., 3., 0.], dtype=float32)
    """

    name: ClassVar[str] = "ram"
    title: ClassVar[str] = "Reinforced Agent Merging"
    reference: ClassVar[str] = "https://arxiv.org/abs/2601.13572"
    needs: ClassVar[Needs] = Needs(base="required")

    epsilon: float = parameter(1e-5, low=0, doc="greatest magnitude of a delta that counts as no change")

    def factors(self, stats: Stats, models: int) -> PerModel:
        """What one model changed is kept as it is."""
        del stats
        return (1.0,) * models
