"""Arcee fusion: what changed most, in the rows that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mergekit.methods.contract import Array, Block, Method, Needs, Raw, Reduction, Stats, Target, row_grain
from mergekit.methods.surveys import Numbers, Survey, Surveyed, SurveyedKth, collected_bytes

_QUARTERS = (0.25, 0.5, 0.75)
_SPAN = 1.5  # interquartile ranges above the median
_ROUNDING = 1e-6  # share of the threshold by which an importance may fall short of it


def _width(target: Target) -> int:
    return max(1, target.width)


def _rows_of(block: Block, divergences: Numbers) -> tuple[int, Numbers]:
    """Entries of a row, and the divergences of the rows of a block."""
    width = _width(block.target)
    first = block.start // width
    return width, divergences[first : first + block.rows.shape[1] // width]


@final
@dataclass(frozen=True, slots=True)
class Importance(Surveyed):
    """Magnitude of the delta times the divergence of the row.

    Parameters:
        divergences: of all rows of the tensor.
    """

    divergences: Numbers

    def of(self, block: Block) -> Numbers:
        """The scores."""
        return _importances(block, *_rows_of(block, self.divergences))


def _importances(block: Block, width: int, divergences: Numbers) -> Numbers:
    scores = np.empty(block.rows.shape[1], np.float32)
    block.reducers.importance(block.models[0], block.base, width, divergences, scores)
    return scores


def _divergences(block: Block, picked: slice) -> tuple[Numbers, Numbers]:
    """Of the rows of a block, and the importances of some of its entries."""
    from mergekit.kernels import arrays, fused

    width = _width(block.target)
    found = np.empty(block.rows.shape[1] // width)
    block.reducers.row_divergence(block.models[0], block.base, width, found)
    rows = block.rows[:, picked]
    if block.reducers is fused:
        raw, rows = rows, np.empty(rows.shape, np.float32)
        for entries, row in zip(raw, rows, strict=True):
            fused.widen(np.ascontiguousarray(entries), row)
    own = found[np.arange(*picked.indices(block.rows.shape[1])) // width]
    return found, arrays.host(arrays.importances(rows[1], rows[0], 1, own))


def _ranks(entries: int, stats: Stats) -> Sequence[int]:
    """Of the quartiles, counted from the greatest; the index from the least is cut off, not rounded."""
    del stats
    return [entries - int(quarter * (entries - 1)) for quarter in _QUARTERS]


@final
@dataclass(frozen=True, kw_only=True)
class ArceeFusion(Method):
    """Take over the most important entries of a model, and leave the others as they are in the base.

    The importance of an entry is ``I = |x − b| · KL``, with KL the divergence of its row (last dimension):
    ``KL = Σ P ln(P/Q)``, ``P = softmax(x) + 1e-8``, ``Q = softmax(b) + 1e-8``. With ``Q_p`` the importance at the index
    ``trunc(p · (n−1))`` of all n in ascending order: ``y = x`` where ``I ≥ Q_50 + 1.5 · (Q_75 − Q_25)``, else ``b``.

    Parameters:
        none.

    Shapes: any; a tensor of one dimension is one row. Passes: three; more where many importances are equal.
    Deterministic.
    Differs from the peer: exact quantiles of all entries instead of those of a random sample; float64 for the
    divergence; an importance that falls short of the threshold by no more than 1e-6 of it counts as equal, so that
    rounding decides nothing.

    Reference: Arcee AI 2025, "Arcee Fusion", https://www.arcee.ai.

    Example:
        >>> import numpy as np
        >>> quartiles = np.array([[1.0], [2.0], [4.0]], np.float32)  # importances at 1/4, 1/2 and 3/4
        >>> round(threshold(quartiles), 3)
        6.5
    """

    name: ClassVar[str] = "arcee_fusion"
    title: ClassVar[str] = "Arcee Fusion"
    reference: ClassVar[str] = "https://www.arcee.ai"
    needs: ClassVar[Needs] = Needs(base="required", least=1, most=1)

    def grain(self, shape: tuple[int, ...]) -> int:
        """Whole rows."""
        return row_grain(shape)

    def held(self, shape: tuple[int, ...]) -> int:
        """Scores that are collected around the order statistics."""
        return collected_bytes(shape, ranks=3)

    def reductions(self) -> tuple[Reduction, ...]:
        """The divergence of each row, then the quartiles of the importances."""
        rows = Survey("rows", _divergences, fold=np.concatenate)
        return (
            rows,
            SurveyedKth("quartiles", "rows", lambda stats: Importance(stats["rows"].found), _ranks, edges=False),
        )

    def merge(self, block: Block, stats: Stats) -> Array:
        """The model's entries where they are important."""
        from array_api_compat import array_namespace

        from mergekit.kernels.arrays import importances

        xp = array_namespace(block.rows)
        broken = block.deltas[0] - block.deltas[0]  # 0, or no number where an input is none
        scores = importances(block.models[0], block.base, *_rows_of(block, stats["rows"].found))
        least = threshold(stats["quartiles"].bits.view(np.float32))
        return xp.where(scores >= least, block.models[0], xp.where(broken == 0, block.base, broken))

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """The same in one pass."""
        from mergekit.kernels.fused import replace_important

        least = threshold(stats["quartiles"].bits.view(np.float32))
        replace_important(block.models[0], block.base, *_rows_of(block, stats["rows"].found), least, out)


def threshold(quartiles: Numbers) -> float:
    """Least importance that is taken over, as a float32; `quartiles` has the shape (3, 1)."""
    first, median, third = (float(quartile) for quartile in quartiles[:, 0])
    return float(np.float32((median + _SPAN * (third - first)) * (1 - _ROUNDING)))
