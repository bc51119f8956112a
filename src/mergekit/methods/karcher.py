"""The Karcher mean: the centre of directions on the sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mergekit.methods.columns import Numbers
from mergekit.methods.contract import Needs, parameter
from mergekit.methods.vectors import ROUNDING, VectorCombination, cosines, norm


@final
@dataclass(frozen=True, kw_only=True)
class Karcher(VectorCombination):
    """Average the directions of the models to the point of the sphere whose arcs to them cancel, and their norms.

    With ``r_i = ‖x_i‖`` and ``u_i = x_i/r_i``, from ``m = Σ_i u_i / ‖Σ_i u_i‖`` on: ``θ_i = arccos(m · u_i)``,
    ``T = 1/N Σ_i θ_i/sin θ_i · (u_i − cos θ_i · m)``, ``m ← cos ‖T‖ · m + sin ‖T‖ · T/‖T‖``, until ``‖T‖ ≤ tol``.
    The result is ``1/N Σ_i r_i · m``. Models without a direction (of norm 0) count only for that norm. Where directions
    cancel, the search begins at the first; a direction opposite to m, to which there is no shortest arc, does not pull.

    Parameters:
        max_iter: steps at most; 0 takes the mean direction as it is.
        tol: length of a step, and angle in radians, that counts as none, 0 to 0.1; also the norm, as a share of the
            greatest, up to which a model has no direction.

    Shapes: any; the tensor is one vector. Passes: two, however many steps: they are taken on the matrix of the
    dot products. Deterministic.
    Differs from the peer: float64 instead of the checkpoint's dtype; an unlisted `base_model` is not averaged in; norms
    are compared with the greatest instead of with `tol` itself, so that small tensors do not become 0.

    Reference: arXiv:2603.04972; Karcher 1977, "Riemannian center of mass and mollifier smoothing",
    doi:10.1002/cpa.3160300502.

    Example:
        >>> import numpy as np
        >>> Karcher(max_iter=10, tol=1e-5).weigh(np.diag([1.0, 9.0])).round(4)  # orthogonal, of norms 1 and 3
        array([1.4142, 0.4714])
    """

    name: ClassVar[str] = "karcher"
    title: ClassVar[str] = "Karcher Mean"
    reference: ClassVar[str] = "https://arxiv.org/abs/2603.04972"
    needs: ClassVar[Needs] = Needs(base="ignored")

    max_iter: int = parameter(10, kind="int", low=0, doc="steps at most")
    tol: float = parameter(1e-5, low=0, high=0.1, doc="length of a step that counts as none")

    def weigh(self, gram: Numbers) -> Numbers:
        """Of each model."""
        norms = np.sqrt(np.diag(gram))
        directed = np.flatnonzero(norms > self.tol * norms.max())
        found: Numbers = np.zeros_like(norms)
        if directed.size:
            found[directed] = self._mean(cosines(gram[np.ix_(directed, directed)])) / norms[directed]
        return float(norms.mean()) * found

    def _mean(self, cosine: Numbers) -> Numbers:
        """The mean direction, as coefficients of unit vectors with these cosines between them."""
        count, least = len(cosine), math.sqrt(ROUNDING)
        mean = np.full(count, 1 / count)
        length = norm(mean, cosine)
        mean = mean / length if length > max(self.tol, least) else np.eye(count)[0]
        for _ in range(self.max_iter):
            towards = np.clip(cosine @ mean, -1, 1)
            angles = np.arccos(towards)
            away = (angles > self.tol) & (math.pi - angles > least)
            pulls = np.divide(angles, np.sin(angles), out=np.zeros(count), where=away) / count
            step = pulls - pulls @ towards * mean
            length = norm(step, cosine)
            if length <= self.tol:
                break
            mean = math.cos(length) * mean + math.sin(length) / length * step
            mean = mean / norm(mean, cosine)
        return mean
