"""Passthrough: the tensors of one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.combination import Combination
from mergekit.methods.contract import Needs, PerModel, Stats, parameter


@final
@dataclass(frozen=True, kw_only=True)
class Passthrough(Combination):
    """Take the tensors of one model as they are, or scaled.

    ``y = scale · x``.

    Parameters:
        scale: factor; without it, or with 1, the bytes are copied.

    Shapes: any. Passes: one. Deterministic.

    Example:
        >>> Passthrough(scale=(1.0,)).untouched()
        0
    """

    name: ClassVar[str] = "passthrough"
    title: ClassVar[str] = "Passthrough"
    reference: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs(base="ignored", least=1, most=1)

    scale: PerModel = parameter(1.0, per_model=True, doc="factor of the tensor")

    def coefficients(self, stats: Stats) -> PerModel:
        """The factor."""
        del stats
        return self.scale

    def untouched(self) -> int | None:
        """The one model, unless it is scaled."""
        return 0 if self.scale == (1.0,) else None
