"""Spherical linear interpolation with weights, of tensors, rows or columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mergekit.methods.columns import Numbers
from mergekit.methods.contract import Needs, PerModel, parameter
from mergekit.methods.vectors import ROUNDING, Along, VectorCombination, cosines

_NO_WEIGHT = 1e-6  # sum of the weights that counts as 0
_SHORT = 1e-7  # norm that shorter vectors are taken to have


@final
@dataclass(frozen=True, kw_only=True)
class NuSlerp(VectorCombination):
    """Interpolate between two models, or between their deltas, along the arc of a great circle.

    With ``t = w_2 / (w_1 + w_2)`` (½ if the weights add up to 0), p and q the vectors of both models and θ the angle
    between them: ``y = sin((1−t)θ)/sin θ · p + sin(tθ)/sin θ · q``; where they are colinear, the straight line
    ``(1−t) · p + t · q`` (a zero vector has cos θ = 0). With a base, p and q are deltas, and the base is added.

    Parameters:
        weight: of each of the two models.
        nuslerp_row_wise: vectors along the first dimension: the columns of a matrix. Only without `nuslerp_flatten`.
        nuslerp_flatten: the whole tensor is one vector; otherwise vectors lie along the last dimension.

    Shapes: any; a tensor of one dimension is one vector. Passes: two; along the last dimension one. Deterministic.
    Differs from the peer: float32 and float64 instead of the checkpoint's dtype; vectors count as colinear up to a
    sine of the angle of 1e-7 instead of 1e-8, below which dot products tell no angle.

    Reference: Shoemake 1985, "Animating rotation with quaternion curves", doi:10.1145/325165.325242, section 3.3.

    Example:
        >>> import numpy as np
        >>> NuSlerp(weight=(1.0, 1.0), nuslerp_row_wise=False, nuslerp_flatten=True).weigh(np.eye(2)).round(4)
        array([0.7071, 0.7071])
    """

    name: ClassVar[str] = "nuslerp"
    title: ClassVar[str] = "NuSLERP"
    reference: ClassVar[str] = "https://en.wikipedia.org/wiki/Slerp"
    needs: ClassVar[Needs] = Needs(base="optional", least=2, most=2)

    weight: PerModel = parameter(1.0, per_model=True, doc="share of each of the two models")
    nuslerp_row_wise: bool = parameter(
        False, kind="bool", doc="without nuslerp_flatten: vectors along the first dimension instead of the last"
    )
    nuslerp_flatten: bool = parameter(True, kind="bool", doc="take the whole tensor as one vector")

    def remarks(self) -> Iterator[str]:
        """A direction, where there is none."""
        if self.nuslerp_row_wise and self.nuslerp_flatten:
            yield "`nuslerp_row_wise` has no effect without `nuslerp_flatten: false`"

    def held(self, shape: tuple[int, ...]) -> int:
        """Dot products of columns: of a block, of every level of a worker's tree, and what is made of their sums."""
        if self.along != "first":
            return super().held(shape)
        levels = (math.prod(shape) // self.grain(shape)).bit_length() + 1
        return math.prod(shape[1:]) * 8 * (3 * (levels + 4) + 4 + 8)  # 3 products of 2 models, a matrix, coefficients

    @property
    def along(self) -> Along:
        """The tensor, or the dimension that was asked for."""
        if self.nuslerp_flatten:
            return "tensor"
        return "first" if self.nuslerp_row_wise else "last"

    def weigh(self, gram: Numbers) -> Numbers:
        """Of p and of q."""
        total = sum(self.weight)
        t = 0.5 if abs(total) < _NO_WEIGHT else self.weight[1] / total
        cosine = cosines(gram, _SHORT)[..., 0, 1]
        straight = 1 - cosine**2 <= ROUNDING
        angle = np.where(straight, 1.0, np.arccos(cosine))
        line, arc = np.array([1 - t, t]), np.sin(np.multiply.outer(angle, [1 - t, t]))
        return np.where(straight[..., None], line, arc / np.sin(angle)[..., None])
