"""DARE: drop entries of task vectors at random, and rescale the others."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.contract import Needs, parameter
from mergekit.methods.delta_sum import NORMS, DeltaSum


@dataclass(frozen=True, kw_only=True)
class Dare(DeltaSum, ABC):
    """The part that both variants share."""

    reference: ClassVar[str] = "https://arxiv.org/abs/2311.03099"
    needs: ClassVar[Needs] = Needs(base="required")

    rescale: bool = parameter(True, kind="bool", doc="divide what is kept by the density")

    rescale_norm: str = parameter(
        "none", kind="str", choices=("none", *NORMS), doc="norm of the task vector that is restored instead"
    )

    @property
    def matches_norms(self) -> bool:
        """Only on request."""
        return self.rescale_norm != "none"

    def chance(self, model: int) -> float:
        """The density."""
        return self.density[model]


@final
@dataclass(frozen=True, kw_only=True)
class DareLinear(Dare):
    """Drop entries of each task vector at random, rescale the others, add all up.

    With ``Δ_i = x_i − b`` and independent masks ``m_i ~ Bernoulli(p_i)``, p the density:
    ``y = b + λ · Σ_i w_i · m_i ⊙ Δ_i / p_i``, the sum divided by ``Σ_i w_i`` if `normalize` and that is not 0.

    Parameters:
        weight: of each task vector.
        density: probability with which an entry is kept, 0 to 1.
        normalize: divide by the sum of the weights.
        lambda: factor of the sum.
        rescale: divide what is kept by the density, so that its expectation is the whole task vector.
        rescale_norm: restore this norm of each task vector instead: l1, l2 or linf; none (the default) for neither.

    Shapes: any. Passes: one; two with `rescale_norm`. Random: a function of seed, tensor name, model and entry.
    Differs from the peer: rescales by 1/p, as the paper does, not by the ratio of L1 norms (`rescale_norm: l1`).

    Reference: Yu et al. 2024, "Language models are Super Mario", arXiv:2311.03099, equations 1 to 3.
    """

    name: ClassVar[str] = "dare_linear"
    title: ClassVar[str] = "Linear DARE"
    elects: ClassVar[bool] = False


@final
@dataclass(frozen=True, kw_only=True)
class DareTies(Dare):
    """Drop entries of each task vector at random, rescale the others, elect a sign per entry, add up what agrees.

    With ``Δ_i = x_i − b``, independent masks ``m_i ~ Bernoulli(p_i)``, p the density, and
    ``D_i = w_i · m_i ⊙ Δ_i / p_i``: the elected sign is that of ``Σ_i D_i`` (0 counts as +); an entry of D_i agrees if
    it has that sign; ``y = b + λ · Σ_agree D_i``, the sum divided by ``Σ_agree w_i`` if `normalize` and that is not 0.

    Parameters:
        weight: of each task vector.
        density: probability with which an entry is kept, 0 to 1.
        normalize: divide by the weights that agree.
        lambda: factor of the sum.
        rescale: divide what is kept by the density, so that its expectation is the whole task vector.
        rescale_norm: restore this norm of each task vector instead: l1, l2 or linf; none (the default) for neither.

    Shapes: any. Passes: one; two with `rescale_norm`. Random: a function of seed, tensor name, model and entry.
    Differs from the peer: rescales by 1/p, as the paper does, not by the ratio of L1 norms (`rescale_norm: l1`).

    Reference: Yu et al. 2024, "Language models are Super Mario", arXiv:2311.03099, equations 1 to 3; the election from
    Yadav et al. 2023, arXiv:2306.01708, algorithm 1.
    """

    name: ClassVar[str] = "dare_ties"
    title: ClassVar[str] = "DARE TIES"
    elects: ClassVar[bool] = True

    normalize: bool = parameter(False, kind="bool", doc="divide by the weights of the models that agree")
