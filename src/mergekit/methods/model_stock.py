"""Model stock: how far to go from the base to the average of a few models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mergekit.methods.columns import Numbers
from mergekit.methods.contract import Needs, parameter
from mergekit.methods.vectors import Along, VectorCombination, cosines

_POLE = 1e-6  # divisor that counts as 0


@final
@dataclass(frozen=True, kw_only=True)
class ModelStock(VectorCombination):
    """Go from the base towards the average of the models, the further the more their deltas agree.

    With ``cos θ`` the mean of the cosines between the deltas of each two of N models:
    ``t = N cos θ / (1 + (N−1) cos θ)``, 0 where the divisor is 0, and ``y = t · 1/N Σ_i x_i + (1−t) · b``.

    Parameters:
        filter_wise: an angle for each vector along the last dimension instead of one for the tensor.

    Shapes: any; a tensor of one dimension is one vector. Passes: two; filter-wise one. Deterministic.
    Differs from the peer: float64 instead of the checkpoint's dtype; cosines between small deltas are what they are, as
    the product of norms that divides is not held above 1e-6.

    Reference: Jang et al. 2024, "Model Stock: all we need is just a few fine-tuned models", arXiv:2403.19522.

    Example:
        >>> import numpy as np
        >>> ModelStock(filter_wise=False).weigh(np.array([[4.0, 1.0], [1.0, 1.0]]))  # cos θ = 1/2, t = 2/3
        array([0.33333333, 0.33333333])
    """

    name: ClassVar[str] = "model_stock"
    title: ClassVar[str] = "Model Stock"
    reference: ClassVar[str] = "https://arxiv.org/abs/2403.19522"
    needs: ClassVar[Needs] = Needs(base="required", least=2)

    filter_wise: bool = parameter(False, kind="bool", doc="an angle for each row instead of one for the tensor")

    @property
    def along(self) -> Along:
        """The tensor, or its last dimension."""
        return "last" if self.filter_wise else "tensor"

    def weigh(self, gram: Numbers) -> Numbers:
        """``t/N`` for each delta."""
        count = gram.shape[-1]
        one, other = np.tril_indices(count, -1)
        cosine = cosines(gram)[..., one, other].mean(axis=-1)
        divisor = 1 + (count - 1) * cosine
        pole = abs(divisor) < _POLE
        share = np.where(pole, 0.0, cosine / np.where(pole, 1.0, divisor))
        return np.repeat(share[..., None], count, axis=-1)
