"""Methods that end in one linear combination of their inputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.methods.contract import Array, Block, Method, PerModel, Raw, Stats

_CANCELLING = 8.0  # a coefficient from which on terms so outweigh their sum that float32 shows


def precise(coefficients: PerModel, rows: Raw) -> NDArray[Any]:
    """Coefficients in the dtype of the sum: float64 where the inputs are float32 themselves, or terms cancel."""
    wide = rows.dtype == np.float32 or max(map(abs, coefficients)) > _CANCELLING
    return np.array(coefficients, np.float64 if wide else np.float32)


class Combination(Method):
    """Methods that return ``base + Σ_i c_i · delta_i`` if there is a base and `of_deltas`, else ``Σ_i c_i · row_i``."""

    of_deltas: bool = True

    @abstractmethod
    def coefficients(self, stats: Stats) -> PerModel:
        """One coefficient for each row, or for each delta."""

    def merge(self, block: Block, stats: Stats) -> Array:
        """The combination, term by term in the order of the models."""
        deltas = block.based and self.of_deltas
        total, terms = (block.base, block.deltas) if deltas else (0, block.rows)
        for coefficient, term in zip(self.coefficients(stats), terms, strict=True):
            total = total + coefficient * term
        return total

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """The combination in one pass."""
        from mergekit.kernels.fused import combine, combine_deltas

        coefficients = precise(self.coefficients(stats), block.rows)
        if block.based and self.of_deltas:
            combine_deltas(block.base, block.models, coefficients, out)
        else:
            combine(block.rows, coefficients, out)
