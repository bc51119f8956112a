"""What an adapter may do to a tensor of its base."""

from __future__ import annotations

from dataclasses import dataclass

from mergekit.checkpoint import Stored


@dataclass(frozen=True, slots=True)
class Product:
    """A product of two thin matrices is added: ``W + scale · B @ A``.

    Parameters:
        a: shape (rank, in).
        b: shape (out, rank).
        scale: factor of the product.
        transposed: whether the base has the transpose, shape (in, out).
    """

    a: Stored
    b: Stored
    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True)
class ExpertProducts:
    """A product is added to each matrix of a fused tensor of experts: ``W[e] + scale · B[e] @ A[e]``.

    Parameters:
        a: shape (experts · rank, in): expert by expert.
        b: shape (out, rank · experts): of each inner dimension all experts.
        scale: factor of the products.
        transposed: whether the base has the transposes, shape (experts, in, out).
    """

    a: Stored
    b: Stored
    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True)
class NewNorms:
    """Outputs are scaled so that they have these norms (DoRA); comes after the product.

    Parameters:
        magnitudes: one for each output.
        transposed: whether outputs are the columns of the base's matrix.
    """

    magnitudes: Stored
    transposed: bool


@dataclass(frozen=True, slots=True)
class Offset:
    """A multiple of another tensor is added.

    Parameters:
        values: of the same shape.
        scale: their factor.
    """

    values: Stored
    scale: float


@dataclass(frozen=True, slots=True)
class NewRows:
    """Some rows are others.

    Parameters:
        values: the rows, shape (n, width).
        numbers: of these rows in the base's matrix, each once.
    """

    values: Stored
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Replacement:
    """Another tensor takes its place.

    Parameters:
        values: of the same shape.
    """

    values: Stored


Change = Product | ExpertProducts | NewNorms | Offset | NewRows | Replacement
"""One step; several are done in their order."""
