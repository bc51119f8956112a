"""One affine map for all tokens, from the donor's rows to the model's.

Public: :class:`LandmarkPca`, :class:`SparseTokenBasis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.surgery.approximation import Approximation, Site, Targets
from mergekit.surgery.atoms import Atoms
from mergekit.surgery.matrices import Anchors, Store, spans
from mergekit.surgery.pursuit import pursue, weighted_sums

Array = NDArray[Any]

_STEP = 4096  # rows that are added up at a time
_CUTOFF = 1e-6  # share of the largest singular value below which rows have no extent in a direction: rounding


@final
@dataclass(frozen=True, slots=True)
class LandmarkPca(Approximation):
    """Principal axes of the shared tokens in both models, turned onto each other.

    With the d leading axes ``V_A`` of the donor's rows A and ``V_B`` of the model's rows B (both centred),
    ``(B V_B)ᵀ(A V_A) = U Σ Vᵀ`` and the rotation ``R = V Uᵀ``, which minimises ``‖A V_A R − B V_B‖``:
    row = ``(t − μ_A) V_A R V_Bᵀ + μ_B``. It does not depend on the signs of the axes.
    """

    summary: ClassVar[str] = "principal axes of both models, turned onto each other"
    source: Array
    matrix: Array
    target: Array

    @classmethod
    def fit(cls, site: Site) -> LandmarkPca:
        """Find the axes and the rotation."""
        anchors = site.anchors
        source, target = _mean(anchors.donor), _mean(anchors.model)
        axes, images = _axes(anchors.donor, source), _axes(anchors.model, target)
        rank = min(axes.shape[1], images.shape[1])
        axes, images = axes[:, :rank], images[:, :rank]
        return cls(source, axes @ _rotation(images.T @ _crossed(anchors, source, target) @ axes) @ images.T, target)

    def approximate(self, targets: Targets) -> Array:
        """The mapped rows."""
        result: Array = (targets.rows - self.source) @ self.matrix + self.target
        return result


def _rotation(crossed: Array) -> Array:
    """The rotation R that makes ``‖X R − Y‖`` least, of ``YᵀX``."""
    u, _, vt = np.linalg.svd(crossed)
    result: Array = (u @ vt).T
    return result


def _mean(rows: Store) -> Array:
    total = np.zeros(rows.shape[1])
    for span in spans(rows.shape[0], _STEP):
        total += rows[span].sum(axis=0, dtype=np.float64)
    result: Array = total / max(1, rows.shape[0])
    return result


def _moments(rows: Store, mean: Array) -> Array:
    """``XᵀX`` of the centred rows."""
    total = np.zeros((mean.size, mean.size))
    for span in spans(rows.shape[0], _STEP):
        apart = rows[span] - mean
        total += apart.T @ apart
    return total


def _crossed(anchors: Anchors, source: Array, target: Array) -> Array:
    """``BᵀA`` of the centred rows."""
    total = np.zeros((target.size, source.size))
    for span in spans(anchors.count, _STEP):
        total += (anchors.model[span] - target).T @ (anchors.donor[span] - source)
    return total


def _axes(rows: Store, mean: Array) -> Array:
    """Principal axes as columns, the longest first, as many as the rows have extent in."""
    values, vectors = np.linalg.eigh(_moments(rows, mean))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > _CUTOFF**2 * values[0]
    signs = np.sign(vectors[abs(vectors).argmax(axis=0), np.arange(mean.size)])
    result: Array = (vectors * signs)[:, kept]
    return result


@final
@dataclass(frozen=True, slots=True)
class SparseTokenBasis(Approximation):
    """A basis of the smaller model's space, each vector a sparse sum of shared tokens, so that the other has it too.

    The basis vectors are the principal axes of the smaller model's rows (the model's, if both are as wide), each
    written by :func:`~mergekit.surgery.pursuit.pursue` over the centred rows; the same sums of both models' rows are
    the bases ``B_A`` and ``B_B``. With ``w = argmin ‖B_Aᵀ w − (t − mean of the donor)‖``,
    row = ``w B_B + mean of the model``.
    """

    summary: ClassVar[str] = "a basis of sparse sums of shared tokens that both models have"
    source: Array
    matrix: Array
    target: Array

    @classmethod
    def fit(cls, site: Site) -> SparseTokenBasis:
        """Find the basis in the smaller model."""
        anchors = site.anchors
        smaller = anchors.donor if site.donor.width < site.model.width else anchors.model
        center = _mean(smaller)
        axes = _axes(smaller, center).T
        chosen, coefficients = pursue(Atoms(smaller, site.device, center), axes, site.settings.k)
        basis, images = (weighted_sums(rows, chosen, coefficients) for rows in (anchors.donor, anchors.model))
        return cls(site.donor.mean, np.linalg.pinv(basis, rcond=_CUTOFF) @ images, site.model.mean)

    def approximate(self, targets: Targets) -> Array:
        """The mapped rows."""
        result: Array = (targets.rows - self.source) @ self.matrix + self.target
        return result
