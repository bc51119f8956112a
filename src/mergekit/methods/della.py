"""DELLA: drop entries of task vectors at random, small ones more likely than great ones."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mergekit.kernels.streams import BITS
from mergekit.methods.contract import Array, Block, Needs, PerModel, Raw, Stats, parameter, row_grain
from mergekit.methods.delta_sum import NORMS, DeltaSum


@dataclass(frozen=True, kw_only=True)
class DellaFrame(DeltaSum, ABC):
    """The part that both variants share: MAGPRUNE, row by row."""

    reference: ClassVar[str] = "https://arxiv.org/abs/2406.11617"
    needs: ClassVar[Needs] = Needs(base="required")

    epsilon: PerModel = parameter(
        0.15, per_model=True, low=0, high=0.5, doc="how far the probabilities of a row spread around the density"
    )
    rescale: bool = parameter(True, kind="bool", doc="divide what is kept by its probability")
    rescale_norm: str = parameter(
        "none", kind="str", choices=("none", *NORMS), doc="norm of the task vector that is restored instead"
    )

    def remarks(self) -> Iterator[str]:
        """Spreads that the density leaves no room for."""
        yield from super().remarks()
        for density, epsilon in zip(self.density, self.epsilon, strict=True):
            if self._spread(density, epsilon) < epsilon and 0 < density < 1:
                narrowed = self._spread(density, epsilon)
                told = f"{epsilon:g} to {narrowed:g} at a density of {density:g}"
                yield f"`epsilon` is narrowed where the density leaves less room: {told}"
                return

    @staticmethod
    def _spread(density: float, epsilon: float) -> float:
        """Epsilon, such that probabilities stay within 0 and 1."""
        return min(epsilon, density, 1 - density)

    @property
    def matches_norms(self) -> bool:
        """Only on request."""
        return self.rescale_norm != "none"

    def chance(self, model: int) -> float:
        """Where it does not depend on ranks."""
        return 1.0 if self.density[model] > 0 else 0.0

    def grain(self, shape: tuple[int, ...]) -> int:
        """Whole rows, in which entries are ranked."""
        return row_grain(shape)

    def _probabilities(self, width: int, model: int) -> tuple[float, float]:
        """Probability of the least entry of a row, and what each doubled rank adds to it."""
        density = self.density[model]
        spread = self._spread(density, self.epsilon[model]) if width > 1 else 0.0
        return density - spread, spread / max(1, width - 1)

    def _ranked(self, block: Block, model: int) -> bool:
        """Whether chances depend on ranks: not where all is kept, or nothing."""
        return 0 < self.density[model] < 1 and block.target.count > 0

    def _ranks_in(self, block: Block, model: int) -> Raw:
        """Doubled ranks of the entries within their rows, from 0."""
        from mergekit.kernels.arrays import rank_scratch

        width, row = block.target.width, block.models[model]
        ranks = np.empty(row.shape[0], np.int32)
        block.reducers.row_ranks(row, block.base, width, np.empty(rank_scratch(width), np.uint32), ranks)
        return ranks

    @property
    def _divides(self) -> bool:
        return self.rescale and not self.matches_norms

    def votes_of(self, block: Block, stats: Stats, model: int) -> Array:
        """What is kept of a delta, divided by its probability if that is asked for."""
        from mergekit.kernels import arrays, fused

        if block.reducers is fused or not self._ranked(block, model):
            return super().votes_of(block, stats, model)
        low, step = self._probabilities(block.target.width, model)
        chance = low + step * self._ranks_in(block, model).astype(np.float64)
        kept = arrays.host(block.noise(model)) < chance * (1 << BITS)
        factor = np.divide(1.0 if self._divides else chance, chance, out=np.zeros_like(chance), where=kept)
        return (block.models[model] - block.base) * arrays.beside(factor, block.base)

    def fill_votes(self, block: Block, stats: Stats, model: int, out: Raw) -> None:
        """The same from raw entries, by kernels."""
        from mergekit.kernels.fused import thin_by_rank

        if not self._ranked(block, model):
            super().fill_votes(block, stats, model, out)
            return
        low, step = self._probabilities(block.target.width, model)
        ranks, keys, row = self._ranks_in(block, model), block.keys(model), block.models[model]
        thin_by_rank(row, block.base, ranks, low, step, self._divides, block.start, keys, out)

    def fuse_onto(self, origin: Raw, scale: float, block: Block, stats: Stats, out: Raw) -> None:
        """Votes and their sum, row by row."""
        from mergekit.kernels.arrays import rank_scratch
        from mergekit.kernels.fused import ranked_sum

        width, models = max(1, block.target.width), range(len(self.weight))
        chances = [self._probabilities(width, i) if self._ranked(block, i) else (self.chance(i), 0.0) for i in models]
        low, step = np.array(chances).T.copy()
        settings = self.settings(block, stats, self.everything, np.full(len(models), 1 << BITS), noisy=True)
        room = (np.empty(rank_scratch(width), np.uint32), np.empty(width, np.int32))
        votes = np.empty((len(models), width), np.float32)
        thinning = (block.base, block.models, width, low, step, self._divides)
        ranked_sum(origin, *thinning, *settings, scale, *room, votes, out)


@final
@dataclass(frozen=True, kw_only=True)
class Della(DellaFrame):
    """Drop entries of each task vector at random, small ones more likely, rescale, elect a sign per entry, add up.

    With ``Δ_i = x_i − b``, r the rank of an entry by magnitude among the d of its row, 1 to d, and p the density:
    ``p_r = p − ε + 2ε · (r − 1)/(d − 1)``, masks ``m ~ Bernoulli(p_r)``, and ``D_i = w_i · m ⊙ Δ_i / p_r``. The elected
    sign is that of ``Σ_i D_i`` (0 counts as +); an entry of D_i agrees if it has that sign;
    ``y = b + λ · Σ_agree D_i``, the sum divided by ``Σ_agree w_i`` if `normalize` and that is not 0.

    Parameters:
        weight: of each task vector.
        density: mean probability with which an entry is kept, 0 to 1.
        epsilon: how far the probabilities of a row spread around the density, 0 to 0.5; narrowed to the density, or to
            1 less the density, where it is more.
        normalize: divide by the weights that agree.
        lambda: factor of the sum.
        rescale: divide what is kept by its probability.
        rescale_norm: restore this norm of each task vector instead: l1, l2 or linf; none (the default) for neither.

    Shapes: any; a row is the last dimension, and a vector is one row. Entries of equal magnitude share the middle of
    their ranks. Passes: one; two with `rescale_norm`. Random: a function of seed, tensor name, model and entry.
    Differs from the peer: rescales by 1/p_r, as the paper does, not by the ratio of L1 norms (`rescale_norm: l1`);
    ranks are exact; epsilon is narrowed where the peer fails; of three and more dimensions the last is the row, not
    the second.

    Reference: Deep et al. 2024, "DELLA-Merging", arXiv:2406.11617, section 3.
    """

    name: ClassVar[str] = "della"
    title: ClassVar[str] = "DELLA"
    elects: ClassVar[bool] = True

    normalize: bool = parameter(True, kind="bool", doc="divide by the weights of the models that agree")


@final
@dataclass(frozen=True, kw_only=True)
class DellaLinear(DellaFrame):
    """Drop entries of each task vector at random, small ones more likely than great ones, rescale, add all up.

    With ``Δ_i = x_i − b``, r the rank of an entry by magnitude among the d of its row, 1 to d, and p the density:
    ``p_r = p − ε + 2ε · (r − 1)/(d − 1)``, masks ``m ~ Bernoulli(p_r)``:
    ``y = b + λ · Σ_i w_i · m ⊙ Δ_i / p_r``, the sum divided by ``Σ_i w_i`` if `normalize` and that is not 0.

    Parameters:
        weight: of each task vector.
        density: mean probability with which an entry is kept, 0 to 1.
        epsilon: how far the probabilities of a row spread around the density, 0 to 0.5; narrowed to the density, or to
            1 less the density, where it is more.
        normalize: divide by the sum of the weights.
        lambda: factor of the sum.
        rescale: divide what is kept by its probability.
        rescale_norm: restore this norm of each task vector instead: l1, l2 or linf; none (the default) for neither.

    Shapes: any; a row is the last dimension, and a vector is one row. Entries of equal magnitude share the middle of
    their ranks. Passes: one; two with `rescale_norm`. Random: a function of seed, tensor name, model and entry.
    Differs from the peer: rescales by 1/p_r, as the paper does, not by the ratio of L1 norms (`rescale_norm: l1`);
    ranks are exact; epsilon is narrowed where the peer fails; of three and more dimensions the last is the row, not
    the second.

    Reference: Deep et al. 2024, "DELLA-Merging", arXiv:2406.11617, section 3.
    """

    name: ClassVar[str] = "della_linear"
    title: ClassVar[str] = "Linear DELLA"
    elects: ClassVar[bool] = False
