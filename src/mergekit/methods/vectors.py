"""Methods that take their inputs for vectors, and need no more of them than their dot products.

A tensor is one vector of each model, or one vector for each of its lines or columns; where there is a base, the
vectors are deltas.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from mergekit.methods.columns import ColumnWeights, Numbers, Weigh, column_grain
from mergekit.methods.combination import Combination
from mergekit.methods.contract import Array, Block, PerModel, Raw, Reduction, Search, Stats, Target, row_grain
from mergekit.methods.reductions import GrainSums, exact_sums

Along = Literal["tensor", "last", "first"]
"""What is one vector: the tensor, or its entries along the last or the first dimension."""

ROUNDING = 1e-14
"""Share of the norms' product up to which a difference of dot products is rounding, and nothing else."""


def cosines(gram: Numbers, least: float = 0.0) -> Numbers:
    """Of the angles between vectors, 0 with a vector of norm 0.

    Parameters:
        gram: dot products, shape (…, k, k).
        least: norm that shorter vectors are taken to have.
    """
    norms = np.maximum(np.sqrt(np.einsum("...ii->...i", gram)), least)
    scale = np.where(norms > 0, norms, 1)
    found: Numbers = np.clip(gram / (scale[..., :, None] * scale[..., None, :]), -1, 1)
    return found


def norm(coefficients: Numbers, gram: Numbers) -> float:
    """Norm of a combination ``Σ_i c_i · v_i`` of vectors with these dot products; 0 where rounding leaves no root."""
    return math.sqrt(max(0.0, float(coefficients @ gram @ coefficients)))


def _vectors_gram(block: Block, length: int) -> Numbers:
    """Dot products of vectors that follow each other, shape (vectors, k, k)."""
    count = block.models.shape[0]
    sums = np.empty((-(-block.models.shape[1] // length), count, count))
    block.reducers.gram(block.origin, block.models, length, sums)
    return sums


@final
@dataclass(frozen=True, slots=True)
class TensorWeights(Reduction):
    """Coefficients of the models, shape (k,), a tensor being one vector.

    Parameters:
        name: key in `stats`.
        weigh: from the dot products of the deltas, or of the models if there is no base; done once.
    """

    name: str
    weigh: Weigh

    def begin(self, target: Target, sample: Callable[[], Sequence[Block]], stats: Stats) -> Search:
        """Start on a tensor."""
        del stats

        def fold(parts: Sequence[Numbers]) -> Numbers:
            return self.weigh(exact_sums(parts))

        return GrainSums.start(lambda block: _vectors_gram(block, target.grain), target, sample, fold)


class VectorCombination(Combination):
    """A combination of vectors whose coefficients follow from their dot products."""

    @property
    def along(self) -> Along:
        """What is one vector."""
        return "tensor"

    @abstractmethod
    def weigh(self, gram: Numbers) -> Numbers:
        """Coefficients, shape (…, k), of vectors with these dot products, shape (…, k, k)."""

    def grain(self, shape: tuple[int, ...]) -> int:
        """Whole lines, where vectors are lines or columns."""
        if self.along == "tensor":
            return super().grain(shape)
        return row_grain(shape) if self.along == "last" else column_grain(shape)

    def reductions(self) -> tuple[Reduction, ...]:
        """The coefficients; those of lines are found on the way."""
        if self.along == "last":
            return ()
        return ((TensorWeights if self.along == "tensor" else ColumnWeights)("weights", self._weigh),)

    def coefficients(self, stats: Stats) -> PerModel:
        """Of the models, where tensors are vectors."""
        return tuple(stats["weights"].tolist())

    def _weigh(self, gram: Numbers) -> Numbers:
        with np.errstate(invalid="ignore"):  # what is infinite or not a number in the inputs is so in the output
            return self.weigh(gram)

    def _table(self, block: Block, stats: Stats) -> Numbers:
        """Coefficients of lines, shape (lines, k), or of columns, shape (k, columns)."""
        if self.along == "last":
            return self._weigh(_vectors_gram(block, block.target.width))
        table: Numbers = stats["weights"]
        return table

    def merge(self, block: Block, stats: Stats) -> Array:
        """The combination, term by term in the order of the models."""
        if self.along == "tensor":
            return super().merge(block, stats)
        from mergekit.kernels.arrays import beside

        table = beside(self._table(block, stats), block.rows)
        shape, factors = (-1, table.shape[1]), table[:, None, :]
        if self.along == "last":
            shape, factors = (-1, block.target.width), table.T[:, :, None]
        total: Array = block.base.reshape(shape) if block.based else 0
        for factor, term in zip(factors, block.deltas if block.based else block.rows, strict=True):
            total = total + factor * term.reshape(shape)
        return total.reshape(-1)

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """The combination in one pass."""
        from mergekit.kernels import fused

        if self.along == "tensor":
            super().fuse(block, stats, out)
            return
        combine = fused.combine_rows if self.along == "last" else fused.combine_columns
        combine(block.origin, block.models, self._table(block, stats), out)
