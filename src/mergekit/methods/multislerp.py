"""Spherical interpolation of many models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mergekit.methods.columns import Numbers
from mergekit.methods.contract import Needs, PerModel, parameter
from mergekit.methods.vectors import ROUNDING, VectorCombination, norm

_NO_WEIGHT = 1e-12  # share of the weights up to which their sum is 0


@final
@dataclass(frozen=True, kw_only=True)
class MultiSlerp(VectorCombination):
    """Average the directions of the models, or of their deltas, on the sphere, and their norms apart from that.

    With ``r_i = ‖X_i‖``, ``u_i = X_i / (r_i + ε)`` and ``m = Σ_i w_i u_i``: ``y = Σ_i w_i r_i · m/‖m‖``. Where the
    directions cancel (‖m‖ < ε), ``y = Σ_i w_i X_i``. With a base, X_i are deltas, and the base is added to y.

    Parameters:
        weight: of each model.
        normalize_weights: divide the weights by their sum, which then must not be 0.
        eps: ε, 0 to 0.001.

    Shapes: any; the tensor is one vector. Passes: two. Deterministic.
    Differs from the peer: float64 instead of the checkpoint's dtype; the step along the mean of the tangents is left
    out, which is 0 by its formula, as tangents at the mean direction add up to nothing; three and more directions that
    cancel, such as deltas of a tensor that nobody changed, are added up instead of refused; the weight of a single
    model is not ignored.

    Reference: Goddard 2025, "Multi-SLERP", https://goddard.blog/posts/multislerp-wow-what-a-cool-idea.

    Example:
        >>> import numpy as np
        >>> thirds = MultiSlerp(weight=(1.0, 1.0, 1.0), normalize_weights=True, eps=1e-8)
        >>> thirds.weigh(np.eye(3)).round(4)  # orthogonal unit vectors
        array([0.5774, 0.5774, 0.5774])
    """

    name: ClassVar[str] = "multislerp"
    title: ClassVar[str] = "Multi-SLERP"
    reference: ClassVar[str] = "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea"
    needs: ClassVar[Needs] = Needs(base="optional")

    weight: PerModel = parameter(1.0, per_model=True, doc="share of each model")
    normalize_weights: bool = parameter(True, kind="bool", doc="divide the weights by their sum")
    eps: float = parameter(1e-8, low=0, high=1e-3, doc="length up to which the mean direction counts as none")

    def mistakes(self) -> Iterator[str]:
        """A sum of weights that cannot be divided by."""
        if self.normalize_weights and abs(sum(self.weight)) <= _NO_WEIGHT * sum(map(abs, self.weight)):
            yield "the weights add up to 0 and cannot be normalized"

    def weigh(self, gram: Numbers) -> Numbers:
        """Of each vector."""
        weights = np.array(self.weight) / (sum(self.weight) if self.normalize_weights else 1.0)
        norms = np.sqrt(np.diag(gram))
        lengths = norms + self.eps
        pulls: Numbers = np.divide(weights, lengths, out=np.zeros_like(weights), where=lengths > 0)
        length = norm(pulls, gram)
        if length < self.eps or length <= math.sqrt(ROUNDING) * np.abs(pulls * norms).sum():
            return weights
        scale = float(weights @ norms)
        return scale / length * pulls

    def untouched(self) -> int | None:
        """A single model."""
        return 0 if len(self.weight) == 1 and self.normalize_weights else None
