"""Sparse sums: a row is written as a sum of a few rows that both models have, and the same sum is taken in the model.

Public: :class:`Omp`, :class:`MpRope`, :func:`pursue`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.errors import UnsupportedError
from mergekit.surgery.approximation import Approximation, Site, Targets
from mergekit.surgery.atoms import Atoms
from mergekit.surgery.matrices import Rows, Store

Array = NDArray[Any]

_NEGLIGIBLE = 1e-6  # share of a target's norm: a residual below is rounding
_DEPENDENT = 1e-3  # share of an atom's norm that is not in the span of the others; below it coefficients explode
_LEAST = 1e-8  # squared norm that is divided by


def pursue(atoms: Atoms, targets: Array, k: int) -> tuple[Rows, Array]:
    """Orthogonal matching pursuit of all targets at a time.

    In each step the atom i with the largest ``|⟨r, aᵢ⟩|`` joins, ``q`` is its part that is orthogonal to the atoms
    before, and ``r ← r − ⟨r, q⟩ q``. It ends after k steps, or when r is rounding. Coefficients are the least-squares
    solution on the atoms, by back-substitution.

    Parameters:
        atoms: what sums are made of.
        targets: shape (m, width).
        k: most atoms of a sum; no more than there are atoms, or entries of a row, are used.

    Returns:
        Numbers of the atoms and their coefficients, both of shape (m, k); a coefficient is 0 where there is no atom.
    """
    count, width = targets.shape
    k = min(k, atoms.count, width)
    residual = targets.astype(np.float64)
    ends = _NEGLIGIBLE * np.linalg.norm(residual, axis=1)
    basis = np.zeros((count, k, width))
    triangle = np.tile(np.eye(k), (count, 1, 1))
    onto = np.zeros((count, k))
    chosen = np.full((count, k), -1, np.int64)
    for step in range(k):
        open_ = np.flatnonzero(np.linalg.norm(residual, axis=1) > ends)
        if not open_.size:
            break
        chosen[open_, step] = atoms.strongest(residual[open_], chosen[open_, :step])
        _extend(atoms, step, open_, chosen, basis, triangle, onto, residual)
    coefficients = np.linalg.solve(triangle, onto[:, :, None])[:, :, 0]
    return np.maximum(chosen, 0), coefficients


def _extend(
    atoms: Atoms, step: int, open_: Rows, chosen: Rows, basis: Array, triangle: Array, onto: Array, residual: Array
) -> None:
    """Add one atom to the orthonormal basis of each open target, and take its part off the residual."""
    rest = atoms.take(chosen[open_, step])
    norms = np.linalg.norm(rest, axis=1)
    before = basis[open_, :step]
    parts = np.zeros((open_.size, step))
    for _ in range(2):  # once more, for what rounding left
        part = np.matmul(before, rest[:, :, None])[:, :, 0]
        rest -= np.matmul(part[:, None], before)[:, 0]
        parts += part
    own = np.linalg.norm(rest, axis=1)
    new = own > _DEPENDENT * norms
    rows, direction = open_[new], rest[new] / own[new, None]
    basis[rows, step] = direction
    triangle[rows, :step, step], triangle[rows, step, step] = parts[new], own[new]
    onto[rows, step] = (direction * residual[rows]).sum(axis=1)
    residual[rows] -= onto[rows, step, None] * direction


def weighted_sums(rows: Store, chosen: Rows, coefficients: Array) -> Array:
    """For each target ``Σ_s c_s · rows[i_s]`` in float64."""
    pairs = zip(chosen, coefficients, strict=True)
    return np.stack([own @ rows[numbers].astype(np.float64) for numbers, own in pairs])


@final
@dataclass(frozen=True, slots=True)
class Omp(Approximation):
    """Orthogonal matching pursuit: the sparse sum that gives the donor's row, taken with the model's rows.

    ``t ≈ Σ_s c_s · A[i_s]``, row = ``Σ_s c_s · B[i_s]``; see :func:`pursue`.

    Reference: Goddard and Fernandes Neto 2025, https://arxiv.org/abs/2506.06607
    """

    summary: ClassVar[str] = "the sparse sum of shared tokens that gives the donor's row"
    atoms: Atoms
    images: Store
    k: int

    @classmethod
    def fit(cls, site: Site) -> Omp:
        """Take the rows of the tokens that both models have."""
        return cls(Atoms(site.anchors.donor, site.device), site.anchors.model, site.settings.k)

    def approximate(self, targets: Targets) -> Array:
        """The sums of the model's rows."""
        return weighted_sums(self.images, *pursue(self.atoms, targets.rows, self.k))

    def entries(self) -> int:
        """The basis of a target, and its images."""
        return min(self.k, self.atoms.count, self.atoms.width) * (2 * self.atoms.width + self.k)


@final
@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary positions on rows that consist of heads, pairing entry j of a head with entry j + half.

    Parameters:
        heads: how many there are.
        base: of the frequencies ``base^(−2j / size of a head)``.
    """

    heads: int
    base: float

    def frequencies(self, width: int) -> Array:
        """Radians per position, shape (half of a head,)."""
        size = width // self.heads
        result: Array = self.base ** (-2.0 * np.arange(size // 2) / size)
        return result

    def rotated(self, rows: Array, positions: Array) -> Array:
        """Rows, shape (m, width), each rotated as at its position."""
        low, high = self._halves(rows)
        angles = positions[:, None, None] * self.frequencies(rows.shape[1])
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=2).reshape(rows.shape)

    def position(self, rows: Array, targets: Array) -> Array:
        """Where rows have to be so that they point to targets: the mean over all pairs of entries, shape (m,)."""
        (a, b), (c, d) = self._halves(rows), self._halves(targets)
        angles = np.arctan2(a * d - b * c, a * c + b * d)
        frequencies = self.frequencies(rows.shape[1])
        total: Array = (angles * frequencies).sum(axis=(1, 2)) / (self.heads * (frequencies**2).sum())
        return total

    def _halves(self, rows: Array) -> tuple[Array, Array]:
        heads = rows.reshape(rows.shape[0], self.heads, -1)
        half = heads.shape[2] // 2
        return heads[:, :, :half], heads[:, :, half:]


def rotary_of(config: Mapping[str, Any], width: int) -> Rotary:
    """The heads and frequencies of a model.

    Parameters:
        config: config.json: ``rope_parameters.rope_theta`` or ``rope_theta``; 10000 if it says nothing.
        width: entries of an embedding.

    Raises:
        UnsupportedError: it does not say how many heads there are, or they cannot be rotated.
    """
    own = next((each for each in _configs(config) if "num_attention_heads" in each), None)
    heads = own.get("num_attention_heads") if own else None
    if own is None or not isinstance(heads, int) or heads < 1 or width % (2 * heads):
        what = f"mp_rope needs a number of attention heads of even size, and config.json says {heads}"
        raise UnsupportedError(what, hint="`--approximation-method omp`")
    parameters = [own.get(key) for key in ("rope_parameters", "rope_scaling")]
    sources = [each for held in parameters if isinstance(held, Mapping) for each in (held, *held.values())]
    found = (each["rope_theta"] for each in (*sources, own) if isinstance(each, Mapping) and "rope_theta" in each)
    return Rotary(heads, float(next(found, 10000.0)))


def _configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    yield from (value for key, value in config.items() if key in ("text_config", "llm_config"))


@final
@dataclass(frozen=True, slots=True)
class MpRope(Approximation):
    """Matching pursuit in which each atom is rotated as at a position of its own.

    ``r ← r − c · rope(aᵢ, p)``, with the atom of the largest ``|⟨r, aᵢ⟩|``; p is the position, of those that turn aᵢ
    to r or to −r, that is nearer to 0. In the end coefficients are the least-squares solution on the rotated atoms;
    row = ``Σ_s c_s · rope(B[i_s], p_s)`` with the model's heads and base.
    """

    summary: ClassVar[str] = "a sparse sum of shared tokens, each rotated as at a position of its own"
    atoms: Atoms
    images: Store
    k: int
    source: Rotary
    target: Rotary

    @classmethod
    def fit(cls, site: Site) -> MpRope:
        """Take the rows of the tokens that both models have, and both models' rotations."""
        anchors, (donor, model) = site.anchors, site.configs
        ropes = rotary_of(donor, site.donor.width), rotary_of(model, site.model.width)
        return cls(Atoms(anchors.donor, site.device), anchors.model, site.settings.k, *ropes)

    def approximate(self, targets: Targets) -> Array:
        """The sums of the model's rows, each rotated."""
        wanted = targets.rows.astype(np.float64)
        k = min(self.k, self.atoms.count, self.atoms.width)
        residual = wanted.copy()
        ends = _NEGLIGIBLE * np.linalg.norm(wanted, axis=1)
        turned = np.zeros((len(wanted), k, self.atoms.width))
        chosen = np.full((len(wanted), k), -1, np.int64)
        positions = np.zeros((len(wanted), k))
        for step in range(k):
            open_ = np.flatnonzero(np.linalg.norm(residual, axis=1) > ends)
            if not open_.size:
                break
            chosen[open_, step] = self.atoms.strongest(residual[open_], chosen[open_, :step])
            rows = self.atoms.take(chosen[open_, step])
            positions[open_, step] = place = self._nearer(rows, residual[open_])
            turned[open_, step] = rows = self.source.rotated(rows, place)
            shares = (rows * residual[open_]).sum(axis=1) / np.maximum((rows**2).sum(axis=1), _LEAST)
            residual[open_] -= shares[:, None] * rows
        inverse = np.linalg.pinv(turned, rcond=_DEPENDENT)
        coefficients = np.matmul(wanted[:, None], inverse)[:, 0]
        return self._sums(np.maximum(chosen, 0), coefficients, positions)

    def entries(self) -> int:
        """The rotated atoms, their pseudo-inverse and what it is made of."""
        return min(self.k, self.atoms.count, self.atoms.width) * 4 * self.atoms.width

    def _nearer(self, rows: Array, residual: Array) -> Array:
        along, against = (self.source.position(rows, sign * residual) for sign in (1, -1))
        return np.where(abs(along) < abs(against), along, against)

    def _sums(self, chosen: Rows, coefficients: Array, positions: Array) -> Array:
        pieces = zip(chosen, coefficients, positions, strict=True)
        return np.stack(
            [own @ self.target.rotated(self.images[numbers].astype(np.float64), at) for numbers, own, at in pieces]
        )
