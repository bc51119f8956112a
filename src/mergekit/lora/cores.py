"""The common core space of several products of thin matrices: all they do, as small square matrices.

Products ``s_i · B_i A_i`` of i = 1 … n have columns in the span of all columns of all B_i, and rows in that of all rows
of all A_i. With orthonormal bases U and V of both, ``s_i · B_i A_i = U C_i V``, where the core C_i has at most Σ r_i
lines and columns. U and V are those of the higher-order singular value decomposition of the stacked products: the left
singular vectors of all products side by side, and the right ones of all on top of each other. They are found from the
factors alone, and do not depend on the order of the products, nor on how each is split into its factors.

References: De Lathauwer et al. 2000, "A multilinear singular value decomposition", doi:10.1137/S0895479896305696;
Stoica et al. 2024, "Model merging with SVD to tie the knots", arXiv:2410.19735.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.lora.decomposition import Goal, decompose

Matrix = NDArray[Any]

_NOTHING = 1e-15  # of the largest eigenvalue: directions below are in no product


@dataclass(frozen=True, slots=True)
class LowRankProduct:
    """``scale · b @ a``.

    Parameters:
        b: shape (out, rank).
        a: shape (rank, in).
        scale: the factor.
    """

    b: Matrix
    a: Matrix
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class CoreSpace:
    """Products by their cores.

    Parameters:
        left: orthonormal columns U, shape (out, k), float64.
        right: orthonormal rows V, shape (l, in), float64.
        cores: C_i, shape (k, l), float32; None for products that are not there.
    """

    left: Matrix
    right: Matrix
    cores: tuple[Matrix, ...]

    def factored(self, core: Matrix, most: int | None = None) -> tuple[Matrix, Matrix, float]:
        """B, shape (out, r), and A, shape (r, in), of ``U C V``, and the share of its squared norm that they hold.

        Parameters:
            core: C, shape (k, l), float32.
            most: highest rank; None for all that there is.
        """
        found = decompose(core, Goal(most or max(1, *core.shape)), exact=True)
        b, a = found.factors(distribute=True)
        return (self.left @ b).astype(np.float32), (a @ self.right).astype(np.float32), found.energy


def core_space(products: Sequence[LowRankProduct | None]) -> CoreSpace:
    """The common core space of products of one shape.

    Parameters:
        products: at least one that is not None; None stands for a matrix of zeros.

    Example:
        >>> one = LowRankProduct(np.array([[1.0], [0.0]]), np.array([[0.0, 2.0, 0.0]]))
        >>> other = LowRankProduct(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0, 0.0]]), scale=3)
        >>> space = core_space([one, other])
        >>> space.left @ space.cores[1] @ space.right
        array([[0., 0., 0.],
               [0., 3., 0.]])
    """
    known = [product for product in products if product is not None]
    outer, left = np.linalg.qr(np.concatenate([product.b for product in known], axis=1).astype(np.float64))
    inner, right = np.linalg.qr(np.concatenate([product.a for product in known]).astype(np.float64).T)
    cores, first = [], 0
    for product in products:
        if product is None:
            cores.append(np.zeros((left.shape[0], right.shape[0])))
            continue
        last = first + product.a.shape[0]
        cores.append(product.scale * left[:, first:last] @ right[:, first:last].T)
        first = last
    across = _directions(np.concatenate(cores, axis=1), outer)
    along = _directions(np.concatenate([core.T for core in cores], axis=1), inner)
    turned = tuple((across.T @ core @ along).astype(np.float32) for core in cores)
    return CoreSpace(outer @ across, (inner @ along).T, turned)


def _directions(stacked: Matrix, basis: Matrix) -> Matrix:
    """Left singular vectors of singular values that are not 0, each with its largest entry in the basis positive."""
    squares, vectors = np.linalg.eigh(stacked @ stacked.T)
    vectors = vectors[:, ::-1][:, squares[::-1] > _NOTHING * squares.max(initial=0.0)]
    if not vectors.size:
        return vectors
    seen = basis @ vectors
    peaks = np.take_along_axis(seen, np.abs(seen).argmax(axis=0)[None], axis=0)
    return vectors * np.where(peaks < 0, -1.0, 1.0)
