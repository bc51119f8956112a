"""Methods that average each entry over the models that changed it."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from mergekit.methods.contract import Array, Block, Method, PerModel, Raw, Stats


class AgentMerge(Method):
    """``y = b + Σ_i Δ_i / c`` over the c models that change an entry, times the model's factor where c is 1."""

    epsilon: float

    @abstractmethod
    def factors(self, stats: Stats, models: int) -> PerModel:
        """Of the entries that each model alone changed."""

    def merge(self, block: Block, stats: Stats) -> Array:
        """The mean, model by model in their order."""
        from array_api_compat import array_namespace

        xp = array_namespace(block.rows)
        total = xp.zeros_like(block.base)
        scaled = xp.zeros_like(block.base)
        count = xp.zeros_like(block.base)
        for delta, factor in zip(block.deltas, self.factors(stats, block.models.shape[0]), strict=True):
            changed = ~(xp.abs(delta) <= self.epsilon)  # where there is no number, it must stay so
            change = xp.where(changed, delta, xp.zeros_like(delta))
            total = total + change
            scaled = scaled + factor * change
            count = count + xp.astype(changed, xp.float32)
        shared = count > 1
        return block.base + xp.where(shared, total / xp.where(shared, count, xp.ones_like(count)), scaled)

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """The mean in one pass."""
        from mergekit.kernels.fused import overlap_mean

        factors = np.array(self.factors(stats, block.models.shape[0]), np.float32)
        overlap_mean(block.base, block.models, factors, self.epsilon, out)
