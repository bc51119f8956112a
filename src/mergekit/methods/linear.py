"""Weighted average."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.combination import Combination
from mergekit.methods.contract import Needs, PerModel, Stats, parameter

_ROUNDING = 1e-12  # share of the weights up to which their sum is 0


@final
@dataclass(frozen=True, kw_only=True)
class Linear(Combination):
    """Average the weights of the models.

    ``y = Σ_i w_i · x_i``, divided by ``Σ_i w_i`` if `normalize`.

    Parameters:
        weight: of each model; any sign.
        normalize: divide by the sum of the weights, which then must not be 0.

    Shapes: any. Passes: one. Deterministic.
    Differs from the peer: a missing weight is 1; an unlisted `base_model` is not averaged in.

    Reference: Wortsman et al. 2022, "Model soups", arXiv:2203.05482, Recipe 1.

    Example:
        >>> Linear(weight=(3.0, 1.0), normalize=True).coefficients({})
        (0.75, 0.25)
    """

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "Linear"
    reference: ClassVar[str] = "https://arxiv.org/abs/2203.05482"
    needs: ClassVar[Needs] = Needs(base="ignored")

    weight: PerModel = parameter(1.0, per_model=True, doc="share of each model")
    normalize: bool = parameter(True, kind="bool", doc="divide by the sum of the weights")

    def mistakes(self) -> Iterator[str]:
        """A sum of weights that cannot be divided by."""
        if self.normalize and abs(sum(self.weight)) <= _ROUNDING * sum(map(abs, self.weight)):
            yield "the weights add up to 0 and cannot be normalized"

    def coefficients(self, stats: Stats) -> PerModel:
        """Weights, normalized on request."""
        del stats
        total = sum(self.weight) if self.normalize else 1.0
        return tuple(weight / total for weight in self.weight)
