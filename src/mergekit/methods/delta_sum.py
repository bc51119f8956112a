"""Sums of thinned task vectors: the frame of TIES, DARE, Model Breadcrumbs and DELLA."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.streams import threshold
from mergekit.methods.contract import Array, Block, Method, PerModel, Raw, Reduction, Stats, parameter
from mergekit.methods.reductions import Cut, Kth, Magnitude, Norms

Numbers = NDArray[Any]

NO_DIVISOR = 1e-8
"""Sum of weights that counts as 0."""

NORMS = ("l1", "l2", "linf")
"""Norms that can be restored: sum of magnitudes, Euclidean, greatest magnitude."""

_NO_NORM = 1e-7  # norm that is not matched
_EVERYTHING = (0, 1 << 62)  # a cut that every magnitude passes, and its edge
_NOTHING = (0xFFFFFFFF, -1)  # one that none does


@dataclass(frozen=True, kw_only=True)
class DeltaSum(Method, ABC):
    """A method whose result is ``b + λ · Σ_i w_i · r_i · S_i``, S_i being what is kept of the delta of model i.

    Subclasses say what is kept: in a band of magnitudes (`band`), at random (`chance`), or otherwise (`votes_of`).
    """

    elects: ClassVar[bool]
    """Whether each entry's sign is elected, and only what agrees with it is added up."""

    weight: PerModel = parameter(1.0, per_model=True, doc="factor of each task vector")
    density: PerModel = parameter(1.0, per_model=True, low=0, high=1, doc="share of entries kept of each task vector")
    normalize: bool = parameter(False, kind="bool", doc="divide by the sum of the weights")
    lambda_: float = parameter(1.0, name="lambda", doc="factor of the sum of the task vectors")
    rescale: bool = parameter(False, kind="bool", doc="make up for what was dropped")
    rescale_norm: str = parameter("l1", kind="str", choices=NORMS, doc="norm of the task vector that is restored")

    def band(self, entries: int, model: int) -> tuple[int, int] | None:
        """How many entries, by descending magnitude, are kept after how many that are dropped; None to keep all."""
        del entries, model
        return None

    def chance(self, model: int) -> float:
        """Probability with which an entry within the band is kept."""
        del model
        return 1.0

    @property
    def adds_votes(self) -> bool:
        """Whether the sign of an entry is that of the sum of all votes, and not that of most."""
        return True

    @property
    def matches_norms(self) -> bool:
        """Whether `rescale` means to restore the norm of the whole delta."""
        return True

    def remarks(self) -> Iterator[str]:
        """A norm that is to be restored, where nothing is rescaled."""
        if self.rescale_norm != type(self).default_norm() and not self.rescale:
            yield "`rescale_norm` has no effect without `rescale: true`"

    @classmethod
    def default_norm(cls) -> object:
        """The default of `rescale_norm`."""
        return next(declared.default for declared in cls.parameters() if declared.field == "rescale_norm")

    def rescaled(self, model: int) -> float:
        """Factor that makes up for what was dropped at random."""
        chance = self.chance(model)
        return 1.0 / chance if self.rescale and not self.matches_norms and threshold(chance) else 1.0

    def _ranks(self, entries: int, stats: Stats) -> Sequence[Sequence[int]]:
        del stats
        bands = (self.band(entries, model) or (entries, 0) for model in range(len(self.weight)))
        return [(kept + dropped, dropped) for kept, dropped in bands]

    def reductions(self) -> tuple[Reduction, ...]:
        """The cuts of each delta, and its norms where they are to be matched; nothing where all is kept."""
        models = range(len(self.weight))
        found: list[Reduction] = []
        if any(self.band(1 << 40, model) for model in models):
            found.append(Kth("cut", tuple(map(Magnitude, models)), self._ranks))
        if self.rescale and self.matches_norms:
            found.append(Norms("norms", len(models), self.votes_of))
        return tuple(found)

    def reduced(self) -> DeltaSum:
        """Cuts and norms are those of the deltas, however they are added up."""
        return replace(self, weight=(1.0,) * len(self.weight), lambda_=1.0, normalize=False)

    def cut(self, stats: Stats) -> Cut:
        """The band of each model, with edges counted from the tensor's start."""
        found: Cut | None = stats.get("cut")
        return found or self.everything

    @cached_property
    def everything(self) -> Cut:
        """The band that all magnitudes are in, for each model."""
        bits, edges = np.array([_EVERYTHING, _NOTHING]).T
        width = len(self.weight)
        return Cut(np.repeat(bits[:, None], width, 1).astype(np.uint32), np.repeat(edges[:, None], width, 1))

    @cached_property
    def _chances(self) -> tuple[Raw, bool]:
        """Thresholds of the noise, and whether any noise is needed."""
        chances = np.array([threshold(self.chance(model)) for model in range(len(self.weight))])
        return chances, bool((chances < threshold(1)).any())

    def factors(self, stats: Stats) -> list[float]:
        """Weights, times what makes up for what was dropped."""
        ratios = [self.rescaled(model) for model in range(len(self.weight))]
        if "norms" in stats:
            place = NORMS.index(self.rescale_norm)
            pairs = [pair[place].tolist() for pair in stats["norms"]]
            ratios = [whole / kept if min(whole, kept) >= _NO_NORM else 1.0 for whole, kept in pairs]
        return [weight * ratio for weight, ratio in zip(self.weight, ratios, strict=True)]

    @property
    def scale(self) -> float:
        """Factor of the sum: λ, over the sum of all weights where signs are not elected."""
        total = sum(self.weight)
        divided = self.normalize and not self.elects and abs(total) >= NO_DIVISOR
        return self.lambda_ / total if divided else self.lambda_

    def votes_of(self, block: Block, stats: Stats, model: int) -> Array:
        """What is kept of the delta of a model, unscaled: float32, shape (n,), in the block's library."""
        from mergekit.kernels import arrays, fused

        if block.reducers is fused:
            votes = np.empty(block.rows.shape[1], np.float32)
            self.fill_votes(block, stats, model, votes)
            return votes
        cut, chance = self.cut(stats), threshold(self.chance(model))
        edges = cut.edges[:, model] - block.start
        kept = arrays.trim(block.models[model] - block.base, cut.bits[:, model], edges)
        return kept * (block.noise(model) < chance) if chance < threshold(1) else kept

    def fill_votes(self, block: Block, stats: Stats, model: int, out: Raw) -> None:
        """The same from raw entries, by a kernel."""
        from mergekit.kernels.fused import thin

        cut, own = self.cut(stats), slice(model, model + 1)
        bits, edges, keys = cut.bits[:, own].copy(), cut.edges[:, own].copy(), block.keys(model)[None]
        chance = threshold(self.chance(model))
        thin(block.models[model], block.base, bits, edges, chance, block.start, keys, out)

    def merge(self, block: Block, stats: Stats) -> Array:
        """The base plus the scaled sum."""
        return block.base + self.scale * self.total(block, stats)

    def total(self, block: Block, stats: Stats) -> Array:
        """Votes, election and sum on the block."""
        from array_api_compat import array_namespace

        xp = array_namespace(block.rows)
        factors = self.factors(stats)
        votes = [factor * self.votes_of(block, stats, model) for model, factor in enumerate(factors)]
        total = sum(votes[1:], votes[0])
        if self.elects:
            poll = total if self.adds_votes else sum(xp.sign(vote) for vote in votes)
            agree = [xp.where(poll >= 0, vote > 0, ~(vote >= 0)) for vote in votes]  # no number stays none
            total = sum(vote * same for vote, same in zip(votes, agree, strict=True))
            if self.normalize:
                weights = zip(self.weight, agree, strict=True)
                divisor = sum(weight * xp.astype(same, xp.float32) for weight, same in weights)
                total = total / xp.where(divisor == 0, xp.ones_like(divisor), divisor)
        return total

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """All steps in one pass over entries in registers and first-level cache; that of rare settings is `merge`."""
        if self.adds_votes:
            self.fuse_onto(block.base, self.scale, block, stats, out)
        else:
            with np.errstate(invalid="ignore", over="ignore"):  # what is broken is found in the output
                super().fuse(block, stats, out)

    def fuse_onto(self, origin: Raw, scale: float, block: Block, stats: Stats, out: Raw) -> None:
        """The scaled sum on top of any entries; the deltas are those from the base."""
        from mergekit.kernels.fused import delta_sum

        settings = self.settings(block, stats, self.cut(stats), *self._chances)
        delta_sum(origin, block.base, block.models, *settings, scale, out)

    def settings(self, block: Block, stats: Stats, cut: Cut, chances: Raw, noisy: bool) -> tuple[Any, ...]:
        """What kernels want to know about a sum of votes besides its scale, in the order of their parameters."""
        weights, factors = np.array(self.weight, np.float32), np.array(self.factors(stats), np.float32)
        models = range(len(self.weight))
        keys = np.array([block.keys(model) for model in models]) if noisy else np.zeros((len(models), 3), np.uint32)
        return (weights, factors, cut.bits, cut.edges, chances, block.start, keys, self.elects, self.normalize)
