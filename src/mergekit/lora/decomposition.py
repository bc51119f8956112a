"""A matrix as a product of two thin ones: its singular values and vectors, exactly or from a random sketch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.errors import NonFiniteError

Matrix = NDArray[Any]

SMALL = 512
"""Lines of a matrix, or columns if there are fewer, up to which it is decomposed exactly anyway."""

_NOISE = 1e-7  # singular values below this share of the largest are rounding errors
_SPARE = 16  # dimensions of a sketch beyond the rank that is wanted
_BLOCK = 32  # dimensions that a sketch grows by if the rank is not known beforehand
_SWEEPS = 3  # power iterations
_SLAB = 1 << 22  # entries that are widened to float64 at a time


@dataclass(frozen=True, slots=True)
class Goal:
    """How many singular values are kept.

    Parameters:
        max_rank: at most so many.
        epsilon: only those above it.
        energy: the fewest that hold this share of the squared norm, 0 to 1; None for as many as there may be.

    Example:
        >>> Goal(8, energy=0.9).rank(np.array([3.0, 1.0, 0.5]), total=10.25)
        2
    """

    max_rank: int = 128
    epsilon: float = 0.0
    energy: float | None = None

    @property
    def open(self) -> bool:
        """Whether the rank depends on the matrix."""
        return self.energy is not None or self.epsilon > 0

    def rank(self, values: Matrix, total: float) -> int:
        """How many of the singular values are kept.

        Parameters:
            values: singular values, the largest first.
            total: squared norm of the matrix.
        """
        if not values.size:
            return 0
        found = min(self.max_rank, int(np.count_nonzero(values > max(self.epsilon, _NOISE * values[0]))))
        if self.energy is not None:
            short = np.cumsum(np.square(values)) < self.energy * total * (1 - 1e-6)
            found = min(found, int(np.count_nonzero(short)) + 1)
        return found


@dataclass(frozen=True, slots=True)
class Decomposition:
    """``left · diag(values) · right``, and what of the matrix it does not hold.

    Parameters:
        left: orthonormal columns, shape (m, r), float32.
        values: singular values, the largest first.
        right: orthonormal rows, shape (r, n), float32.
        total: squared norm of the matrix.
        exact: whether all singular values were found, and not only those in a sketch.
    """

    left: Matrix
    values: Matrix
    right: Matrix
    total: float
    exact: bool = True

    @property
    def rank(self) -> int:
        """How many singular values there are."""
        return int(self.values.size)

    @property
    def energy(self) -> float:
        """Share of the squared norm that is held; 1 of a matrix of zeros."""
        return min(1.0, float(np.square(self.values).sum()) / self.total) if self.total else 1.0

    def factors(self, distribute: bool) -> tuple[Matrix, Matrix]:
        """B, shape (m, r), and A, shape (r, n), whose product this is.

        Parameters:
            distribute: give the square root of the singular values to both, instead of all of them to A.
        """
        values = self.values.astype(np.float32)[:, None]
        if not distribute:
            return self.left, values * self.right
        roots = np.sqrt(values)
        return self.left * roots[:, 0], roots * self.right

    def transposed(self) -> Decomposition:
        """That of the transpose."""
        return replace(self, left=self.right.T, right=self.left.T)


def decompose(matrix: Matrix, goal: Goal, *, exact: bool = False, seed: int = 0) -> Decomposition:
    """Find the largest singular values of a matrix and their vectors.

    With ``X = U Σ Vᵀ``: up to :data:`SMALL` lines or columns, and wherever the rank may be half of them or more, from
    the eigenvectors of the Gram matrix ``X Xᵀ`` in float64. Larger matrices are first projected on few dimensions Q
    that hold almost all of what they do to random vectors (randomised SVD with power iterations), and ``Qᵀ X`` is
    decomposed so. The error ``‖X − B A‖`` is then within 2 % of the least one at this rank, however slowly singular
    values fall; `energy` is that of the factors in either case, and no estimate.

    Every column of `left` has its largest entry positive: the result is a function of the matrix, the goal and the
    seed, on the same machine with the same NumPy.

    Parameters:
        matrix: shape (m, n), float32.
        goal: how many singular values are kept.
        exact: use LAPACK's SVD in float64, whatever the size.
        seed: of the random vectors.

    Raises:
        NonFiniteError: the matrix holds NaN or infinity.

    Example:
        >>> found = decompose(np.outer([1, 2, 2], [0, 3, 4]).astype(np.float32), Goal())
        >>> found.rank, round(float(found.values[0]), 4), found.energy
        (1, 15.0, 1.0)
    """
    if matrix.shape[0] > matrix.shape[1]:
        return _oriented(decompose(matrix.T, goal, exact=exact, seed=seed).transposed())
    total = squared_norm(matrix)
    if not math.isfinite(total):
        raise NonFiniteError("the matrix to be decomposed holds NaN or infinity")
    if total == 0:
        empty = np.empty((sum(matrix.shape), 0), np.float32)
        return Decomposition(empty[: matrix.shape[0]], np.empty(0), empty[matrix.shape[0] :].T, total)
    return _oriented(_by_lapack(matrix, goal, total) if exact else _by_gram(matrix, goal, total, seed))


def squared_norm(matrix: Matrix) -> float:
    """Sum of the squares of all entries, in float64."""
    return math.fsum(float(np.square(slab).sum()) for slab in _wide(matrix))


def _wide(matrix: Matrix) -> Iterator[Matrix]:
    """The matrix in float64, some columns at a time."""
    step = max(1, _SLAB // max(1, matrix.shape[0]))
    for first in range(0, matrix.shape[1], step):
        yield matrix[:, first : first + step].astype(np.float64)


def _by_lapack(matrix: Matrix, goal: Goal, total: float) -> Decomposition:
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    rank = goal.rank(values, total)
    return Decomposition(_narrow(left[:, :rank]), values[:rank], _narrow(right[:rank]), total)


def _by_gram(matrix: Matrix, goal: Goal, total: float, seed: int) -> Decomposition:
    lines = matrix.shape[0]
    if lines <= SMALL or 2 * (goal.max_rank + _SPARE) >= lines:
        basis, core = None, matrix
    else:
        basis = _range(matrix, goal, total, np.random.default_rng(seed))
        core = basis.T @ matrix
    squares, vectors = np.linalg.eigh(sum(slab @ slab.T for slab in _wide(core)))
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    rank = goal.rank(values, total)
    left = _narrow(vectors[:, ::-1][:, :rank])
    right = (left.T @ core) / np.maximum(values[:rank], 1e-300)[:, None]
    whole = left if basis is None else basis @ left
    return Decomposition(_narrow(whole), values[:rank], _narrow(right), total, exact=basis is None)


def _range(matrix: Matrix, goal: Goal, total: float, random: np.random.Generator) -> Matrix:
    """Orthonormal columns that span what a matrix does, shape (m, l): all at once, or until the goal is met."""
    most = min(matrix.shape[0], goal.max_rank + _SPARE)
    basis = np.empty((matrix.shape[0], 0), np.float32)
    held = 0.0
    while basis.shape[1] < most:
        width = min(_BLOCK if goal.open else most, most - basis.shape[1])
        block = _sketch(matrix, basis, width, random)
        core = block.T @ matrix
        basis = np.concatenate([basis, block], axis=1)
        held += squared_norm(core)
        largest = float(np.linalg.norm(core, axis=1).max())
        if goal.open and (held >= (goal.energy or 2.0) * total or largest <= goal.epsilon):
            break
    return basis


def _sketch(matrix: Matrix, basis: Matrix, width: int, random: np.random.Generator) -> Matrix:
    """More columns of a basis: what a matrix, without what the basis holds already, does to random vectors."""
    block = matrix @ random.standard_normal((matrix.shape[1], width), np.float32)
    for _ in range(_SWEEPS):
        block = matrix @ _orthonormal(matrix.T @ _orthonormal(_without(block, basis)))
    return _orthonormal(_without(_without(block, basis), basis))  # twice: once leaves rounding errors


def _without(block: Matrix, basis: Matrix) -> Matrix:
    return block - basis @ (basis.T @ block) if basis.shape[1] else block


def _orthonormal(block: Matrix) -> Matrix:
    return _narrow(np.linalg.qr(block.astype(np.float64))[0])


def _oriented(found: Decomposition) -> Decomposition:
    if not found.rank:
        return found
    peaks = np.take_along_axis(found.left, np.abs(found.left).argmax(axis=0)[None], axis=0)
    signs = np.where(peaks < 0, np.float32(-1), np.float32(1))
    return replace(found, left=found.left * signs, right=found.right * signs.T)


def _narrow(matrix: Matrix) -> Matrix:
    return np.ascontiguousarray(matrix, np.float32)
