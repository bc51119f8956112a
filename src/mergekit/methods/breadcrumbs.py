"""Model Breadcrumbs: drop the greatest and the least entries of task vectors."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.contract import Needs, PerModel, parameter
from mergekit.methods.delta_sum import DeltaSum


@dataclass(frozen=True, kw_only=True)
class BreadcrumbsFrame(DeltaSum, ABC):
    """The part that both variants share."""

    reference: ClassVar[str] = "https://arxiv.org/abs/2312.06795"
    needs: ClassVar[Needs] = Needs(base="required")

    gamma: PerModel = parameter(0.01, per_model=True, low=0, high=1, doc="share of greatest entries that are dropped")

    def band(self, entries: int, model: int) -> tuple[int, int] | None:
        """Less than the greatest entries are dropped where the density leaves no more."""
        if self.density[model] >= 1:
            return None
        kept = int(self.density[model] * entries)
        return kept, min(int(self.gamma[model] * entries), entries - kept)


@final
@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(BreadcrumbsFrame):
    """Drop the greatest and the least entries of each task vector, add up the others.

    With ``Δ_i = x_i − b`` of n entries in descending order of magnitude: the first ``trunc(γ · n)`` are dropped, or
    ``n − trunc(p · n)`` if that is less, the next ``trunc(p · n)`` are kept as S_i, p the density, and the others
    dropped; ``y = b + λ · Σ_i w_i · S_i``, the sum divided by ``Σ_i w_i`` if `normalize` and that is not 0. A density
    of 1 keeps everything.

    Parameters:
        weight: of each task vector.
        density: share of entries kept, 0 to 1; ties by lowest index.
        gamma: share of greatest entries that are dropped, 0 to 1.
        normalize: divide by the sum of the weights.
        lambda: factor of the sum.
        rescale: multiply what is kept to restore the norm of each task vector.
        rescale_norm: which norm `rescale` restores: l1 (the default), l2 or linf.

    Shapes: any; the order is that of the whole tensor. Passes: one without trimming, else two or
    three, and one more with `rescale`. Deterministic.
    Differs from the peer: float32 instead of the checkpoint's dtype; exact selection with ties by lowest index.

    Reference: Davari and Belilovsky 2024, "Model Breadcrumbs", arXiv:2312.06795, section 3.
    """

    name: ClassVar[str] = "breadcrumbs"
    title: ClassVar[str] = "Model Breadcrumbs"
    elects: ClassVar[bool] = False


@final
@dataclass(frozen=True, kw_only=True)
class BreadcrumbsTies(BreadcrumbsFrame):
    """Drop the greatest and the least entries of each task vector, elect a sign per entry, add up what agrees.

    With S_i the task vector ``Δ_i = x_i − b`` of n entries without the ``trunc(γ · n)`` greatest by magnitude and
    without those after the next ``trunc(p · n)``, p the density (see `breadcrumbs`), and ``D_i = w_i · S_i``: the
    elected sign is that of ``Σ_i D_i`` (0 counts as +); an entry of D_i agrees if it has that sign;
    ``y = b + λ · Σ_agree D_i``, the sum divided by ``Σ_agree w_i`` if `normalize` and that is not 0.

    Parameters:
        weight: of each task vector.
        density: share of entries kept, 0 to 1; ties by lowest index.
        gamma: share of greatest entries that are dropped, 0 to 1.
        normalize: divide by the weights that agree.
        lambda: factor of the sum.
        rescale: multiply what is kept to restore the norm of each task vector.
        rescale_norm: which norm `rescale` restores: l1 (the default), l2 or linf.

    Shapes: any; the order is that of the whole tensor. Passes: one without trimming, else two or
    three, and one more with `rescale`. Deterministic.
    Differs from the peer: float32 instead of the checkpoint's dtype; exact selection with ties by lowest index.

    Reference: Davari and Belilovsky 2024, "Model Breadcrumbs", arXiv:2312.06795, section 3; the election from
    Yadav et al. 2023, arXiv:2306.01708, algorithm 1.
    """

    name: ClassVar[str] = "breadcrumbs_ties"
    title: ClassVar[str] = "Model Breadcrumbs with TIES"
    elects: ClassVar[bool] = True

    normalize: bool = parameter(False, kind="bool", doc="divide by the weights of the models that agree")
