"""Task arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.combination import Combination
from mergekit.methods.contract import Needs, PerModel, Stats, parameter
from mergekit.methods.delta_sum import NO_DIVISOR


@final
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Combination):
    """Add up weighted task vectors.

    ``y = b + λ · Σ_i w_i · (x_i − b)``, the sum divided by ``Σ_i w_i`` if `normalize` and that is not 0.

    Parameters:
        weight: of each task vector; negative ones unlearn.
        normalize: divide by the sum of the weights.
        lambda: factor of the sum.

    Shapes: any. Passes: one. Deterministic. Differs from the peer: float32 instead of the checkpoint's dtype.

    Reference: Ilharco et al. 2023, "Editing models with task arithmetic", arXiv:2212.04089, section 2.

    Example:
        >>> TaskArithmetic(weight=(0.5, -0.25), normalize=False, lambda_=2.0).coefficients({})
        (1.0, -0.5)
    """

    name: ClassVar[str] = "task_arithmetic"
    title: ClassVar[str] = "Task Arithmetic"
    reference: ClassVar[str] = "https://arxiv.org/abs/2212.04089"
    needs: ClassVar[Needs] = Needs(base="required")

    weight: PerModel = parameter(1.0, per_model=True, doc="factor of each task vector")
    normalize: bool = parameter(False, kind="bool", doc="divide by the sum of the weights")
    lambda_: float = parameter(1.0, name="lambda", doc="factor of the sum of the task vectors")

    def coefficients(self, stats: Stats) -> PerModel:
        """Of each task vector."""
        del stats
        total = sum(self.weight)
        divisor = total if self.normalize and abs(total) >= NO_DIVISOR else 1.0
        return tuple(self.lambda_ * weight / divisor for weight in self.weight)
