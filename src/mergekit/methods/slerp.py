"""Spherical linear interpolation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.combination import Combination
from mergekit.methods.contract import Needs, PerModel, Reduction, Stats, parameter
from mergekit.methods.reductions import Gram

_COLINEAR = 0.9995  # cosine beyond which the arc is a straight line
_TINY = 1e-8  # norm up to which a tensor has no direction


@final
@dataclass(frozen=True, kw_only=True)
class Slerp(Combination):
    """Interpolate between the base and one model along the arc of a great circle, the tensor taken as one vector.

    With θ the angle between a (base) and v (model): ``y = sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · v``; where
    ``|cos θ| > 0.9995`` the straight line ``(1−t) · a + t · v`` (a zero vector has cos θ = 0).

    Parameters:
        t: position on the arc: 0 is the base, 1 the model; values outside extrapolate.

    Shapes: any; norms and angle are those of the whole tensor. Passes: two. Deterministic.
    Differs from the peer: the angle is computed in float64 in one sweep.

    Reference: Shoemake 1985, "Animating rotation with quaternion curves", doi:10.1145/325165.325242, section 3.3.

    Example:
        >>> import numpy as np
        >>> Slerp(t=0.5).coefficients({"dots": np.eye(2)})  # orthogonal unit vectors
        (0.7071067811865475, 0.7071067811865475)
    """

    name: ClassVar[str] = "slerp"
    title: ClassVar[str] = "SLERP"
    reference: ClassVar[str] = "https://en.wikipedia.org/wiki/Slerp"
    needs: ClassVar[Needs] = Needs(base="required", least=1, most=1)

    of_deltas = False

    t: float = parameter(doc="position between the base (0) and the model (1)")

    def reductions(self) -> tuple[Reduction, ...]:
        """The norms and the dot product of both."""
        return (Gram("dots"),)

    def coefficients(self, stats: Stats) -> PerModel:
        """Of the base and of the model."""
        dots = stats["dots"]
        norms = [math.sqrt(dots[i, i]) for i in range(2)]
        scale = [norm if norm > _TINY else 1.0 for norm in norms]
        cosine = min(1.0, max(-1.0, float(dots[0, 1]) / (scale[0] * scale[1])))
        if abs(cosine) > _COLINEAR:
            return (1 - self.t, self.t)
        angle = math.acos(cosine)
        return (math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle))
