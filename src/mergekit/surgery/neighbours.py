"""Weighted means of the nearest tokens.

Public: :class:`CommonInterpolation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.surgery.approximation import Approximation, Site, Targets
from mergekit.surgery.atoms import Atoms
from mergekit.surgery.matrices import Rows, Store
from mergekit.surgery.pursuit import weighted_sums

Array = NDArray[Any]

_LEAST = 1e-6  # what distances, norms and sums of weights are raised to before they divide
_SPARE = 16  # candidates beyond k: float32 finds them, float64 chooses among them
_CUTOFF = 1e-12  # share of the largest singular value below which a direction does not exist


@final
@dataclass(frozen=True, slots=True)
class CommonInterpolation(Approximation):
    """A weighted mean of the model's rows of the k shared tokens that are nearest in the donor.

    With neighbours P (rows), target t and distances d, the weights w are, by scheme,

    - distance_proportional: ``1 / max(d, 1e-6)``, or with cosine similarity the similarity, divided by their sum;
    - barycentric: those of ``min ‖t − Pᵀw‖`` with ``Σ w = 1``, from its system ``[[PPᵀ, 1], [1ᵀ, 0]]``;
    - least_squares: those of the shortest w in ``min ‖t − Pᵀw‖``.
    """

    summary: ClassVar[str] = "a weighted mean of the nearest shared tokens"
    atoms: Atoms
    images: Store
    k: int
    cosine: bool
    scheme: str

    @classmethod
    def fit(cls, site: Site) -> CommonInterpolation:
        """Take the rows of the tokens that both models have."""
        own, anchors = site.settings, site.anchors
        atoms = Atoms(anchors.donor, site.device)
        return cls(atoms, anchors.model, min(own.k, anchors.count), own.cosine_similarity, own.weight_scheme)

    def approximate(self, targets: Targets) -> Array:
        """The means of the model's rows."""
        wanted = targets.rows.astype(np.float64)
        near = self._candidates(wanted)
        rows = self.atoms.take(near.ravel()).reshape(*near.shape, -1)
        distances = self._distances(wanted, rows)
        order = np.argsort(distances, axis=1, kind="stable")[:, : self.k]
        near, distances = (np.take_along_axis(each, order, 1) for each in (near, distances))
        rows = np.take_along_axis(rows, order[:, :, None], 1)
        return weighted_sums(self.images, near, self._weights(wanted, rows, distances))

    def entries(self) -> int:
        """The candidates, their systems, and what pseudo-inverses are made of."""
        many = self.k + _SPARE
        return 4 * many * (self.atoms.width + many)

    def _candidates(self, wanted: Array) -> Rows:
        """The nearest atoms by float32, and some to spare, in ascending order of their numbers; shape (m, ·)."""
        count = min(self.atoms.count, self.k + _SPARE)
        numbers: Array = np.zeros((len(wanted), 0), np.int64)
        scores: Array = np.zeros((len(wanted), 0), np.float32)
        for span, products in self.atoms.products(wanted):
            squares = (self.atoms.rows[span].astype(np.float32) ** 2).sum(axis=1)
            own = products / np.maximum(np.sqrt(squares), _LEAST) if self.cosine else 2 * products - squares
            scores = np.hstack([scores, own])
            numbers = np.hstack([numbers, np.tile(np.arange(span.start, span.stop), (len(wanted), 1))])
            best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            numbers, scores = (np.take_along_axis(each, best, 1) for each in (numbers, scores))
        return np.sort(numbers, axis=1)

    def _distances(self, wanted: Array, rows: Array) -> Array:
        """Of each target to its neighbours, shape (m, k)."""
        if not self.cosine:
            result: Array = np.linalg.norm(rows - wanted[:, None], axis=2)
            return result
        norms = np.linalg.norm(rows, axis=2) * np.linalg.norm(wanted, axis=1)[:, None]
        cosines: Array = np.matmul(rows, wanted[:, :, None])[:, :, 0] / np.maximum(norms, _LEAST)
        return 1 - cosines

    def _weights(self, wanted: Array, rows: Array, distances: Array) -> Array:
        if self.scheme == "barycentric":
            return _barycentric(wanted, rows)
        if self.scheme == "least_squares":
            solved: Array = np.matmul(wanted[:, None], np.linalg.pinv(rows, rcond=_CUTOFF))[:, 0]
            return solved
        raw = 1 - distances if self.cosine else 1 / np.maximum(distances, _LEAST)
        result: Array = raw / np.maximum(raw.sum(axis=1, keepdims=True), _LEAST)
        return result


def _barycentric(wanted: Array, rows: Array) -> Array:
    count, k, _ = rows.shape
    system = np.ones((count, k + 1, k + 1))
    system[:, :k, :k] = np.matmul(rows, rows.transpose(0, 2, 1))
    system[:, k, k] = 0
    right = np.ones((count, k + 1, 1))
    right[:, :k] = np.matmul(rows, wanted[:, :, None])
    result: Array = np.matmul(np.linalg.pinv(system, rcond=_CUTOFF, hermitian=True), right)[:, :k, 0]
    return result
