"""Sums of task vectors that were thinned by rank, row by row: what DELLA ends in."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from mergekit.kernels.compiling import inner
from mergekit.kernels.delta_sum import delta_sum, thin_by_rank
from mergekit.kernels.ranks import rank_row

Raw = NDArray[Any]

_thin_by_rank, _delta_sum = inner(thin_by_rank), inner(delta_sum)


@inner
def _clear(ranks: Raw) -> None:
    for j in range(ranks.size):
        ranks[j] = 0


def ranked_sum(
    origin: Raw,
    base: Raw,
    rows: Raw,
    width: int,
    low: Raw,
    step: Raw,
    rescale: bool,
    weights: Raw,
    factors: Raw,
    cuts: Raw,
    edges: Raw,
    chances: Raw,
    first: int,
    keys: Raw,
    elect: bool,
    normalize: bool,
    scale: float,
    scratch: Raw,
    ranks: Raw,
    votes: Raw,
    out: Raw,
) -> None:
    """Thin deltas out by their ranks within lines, then add up: all of it line by line, in the nearest caches.

    Parameters:
        origin: raw entries, shape (n,): what the sum is added to.
        base, out: raw entries, shape (n,).
        rows: raw entries, shape (k, n), n a multiple of `width`: lines of k matrices, one after the other.
        width: entries of a line.
        low, step: float64, shape (k,): the chance of an entry is ``low + step · rank``, the rank being the doubled one
            of :func:`mergekit.kernels.ranks.row_ranks`; where the step is 0, there is no need to know it.
        rescale: divide what is kept by its chance.
        weights, factors, cuts, edges, chances, keys, elect, normalize, scale: as in
            :func:`mergekit.kernels.delta_sum.delta_sum`, for what is kept.
        first: index in the tensor of the first entry.
        scratch: uint32, :func:`mergekit.kernels.arrays.rank_scratch` entries, overwritten.
        ranks: int32, shape (width,), overwritten.
        votes: float32, shape (k, width), overwritten.
    """
    for start in range(0, out.size, width):
        stop = start + width
        own = base[start:stop]
        for i in range(rows.shape[0]):
            row = rows[i, start:stop]
            if step[i] != 0:
                rank_row(row, own, scratch, ranks)
            else:
                _clear(ranks)
            _thin_by_rank(row, own, ranks, low[i], step[i], rescale, first + start, keys[i], votes[i])
        none, place, line = votes[0, :0], first + start, out[start:stop]
        settings = (weights, factors, cuts, edges, chances, place, keys, elect, normalize, scale)
        _delta_sum(origin[start:stop], none, votes, *settings, line)
