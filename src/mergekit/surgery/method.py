"""The plan's name for a transplant: reports and model cards show it like a merge method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.combination import Combination
from mergekit.methods.contract import Needs, PerModel, Stats


@final
@dataclass(frozen=True, kw_only=True)
class Transplant(Combination):
    """Write a vocabulary matrix whose rows are in the donor's order; the view of its operand makes them.

    Shapes: any. Passes: one. Deterministic.
    """

    name: ClassVar[str] = "tokensurgeon"
    title: ClassVar[str] = "tokenizer transplant"
    reference: ClassVar[str] = "https://arxiv.org/abs/2506.06607"
    needs: ClassVar[Needs] = Needs(base="ignored", least=1, most=1)

    def coefficients(self, stats: Stats) -> PerModel:
        """The rows as they are."""
        del stats
        return (1.0,)
