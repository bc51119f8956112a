"""Rows that depend on the model's own rows only.

Public: :class:`Mean`, :class:`Zero`, :class:`Randn`, :class:`JohnHewitt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.surgery.approximation import Approximation, Site, Targets
from mergekit.surgery.matrices import Matrix
from mergekit.surgery.noise import normal_rows

Array = NDArray[Any]


@final
@dataclass(frozen=True, slots=True)
class Mean(Approximation):
    """The mean of all rows of the model."""

    blind: ClassVar[bool] = True
    summary: ClassVar[str] = "the mean of all rows of the model"
    mean: Array

    @classmethod
    def fit(cls, site: Site) -> Mean:
        """Take the mean."""
        return cls(site.model.mean)

    def approximate(self, targets: Targets) -> Array:
        """The mean, again and again."""
        return np.tile(self.mean, (targets.tokens.size, 1))


@final
@dataclass(frozen=True, slots=True)
class Zero(Approximation):
    """Zeros."""

    blind: ClassVar[bool] = True
    summary: ClassVar[str] = "zeros"
    width: int

    @classmethod
    def fit(cls, site: Site) -> Zero:
        """There is nothing to learn."""
        return cls(site.model.width)

    def approximate(self, targets: Targets) -> Array:
        """Zeros."""
        return np.zeros((targets.tokens.size, self.width))


@final
@dataclass(frozen=True, slots=True)
class Randn(Approximation):
    """Standard normal numbers, far larger than embeddings are."""

    blind: ClassVar[bool] = True
    summary: ClassVar[str] = "standard normal numbers"
    seed: int
    name: str
    width: int

    @classmethod
    def fit(cls, site: Site) -> Randn:
        """There is nothing to learn."""
        return cls(site.settings.seed, f"randn {site.name}", site.model.width)

    def approximate(self, targets: Targets) -> Array:
        """Numbers that depend on seed, matrix, token and entry only."""
        return normal_rows(self.seed, self.name, targets.tokens, self.width)


@final
@dataclass(frozen=True, slots=True)
class JohnHewitt(Approximation):
    """Draws from the normal distribution with mean and covariance of the model's rows.

    ``row = μ + z · Σ^½`` with the covariance ``Σ = (X − μ)ᵀ(X − μ) / n``, whose symmetric square root there also is for
    embeddings that do not fill their space.

    Reference: Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html
    """

    blind: ClassVar[bool] = True
    summary: ClassVar[str] = "draws from the normal distribution of the model's rows"
    seed: int
    name: str
    mean: Array
    factor: Array

    @classmethod
    def fit(cls, site: Site) -> JohnHewitt:
        """Take mean and covariance of all rows."""
        factor = _root(covariance(site.model))
        return cls(site.settings.seed, f"john_hewitt {site.name}", site.model.mean, factor)

    def approximate(self, targets: Targets) -> Array:
        """A draw for each token, which depends on seed, matrix and token only."""
        drawn = normal_rows(self.seed, self.name, targets.tokens, self.mean.size)
        result: Array = self.mean + drawn @ self.factor
        return result


def covariance(matrix: Matrix) -> Array:
    """The covariance of all rows in float64, shape (width, width)."""
    total = np.zeros((matrix.width, matrix.width))
    for _, block in matrix.blocks():
        apart = block - matrix.mean
        total += apart.T @ apart
    result: Array = total / max(1, matrix.height)
    return result


def _root(sigma: Array) -> Array:
    """The symmetric square root, which does not depend on the signs of eigenvectors."""
    values, vectors = np.linalg.eigh(sigma)
    result: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return result
