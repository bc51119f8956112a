"""Sums of trimmed deltas under a majority sign: the fused kernel of TIES."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import GRAIN
from mergekit.kernels.compiling import inner, inner_sum
from mergekit.kernels.numbers import MAGNITUDE, as_bits, f32, load, stack_array, store, u32

Raw = NDArray[Any]

TILE = 1024  # entries; the votes of a few models stay in the first-level cache
ROOM = 8  # models whose votes are kept between the two rounds; those of further models are computed again


@inner
def _vote(votes: Raw, elected: Raw, row: Raw, origin: Raw, factor: Any, cut: Any, edge: Any) -> None:
    for j in range(votes.size):
        delta = load(row[j]) - origin[j]
        kept = (as_bits(delta) & MAGNITUDE) >= cut + u32(j > edge)
        vote = factor * delta if kept else f32(0)
        votes[j] = vote
        elected[j] += vote


@inner
def _clear(tile: Raw) -> None:
    for j in range(tile.size):
        tile[j] = f32(0)


@inner
def _agree(total: Raw, divisor: Raw, votes: Raw, elected: Raw, weight: Any) -> None:
    for j in range(total.size):
        vote = votes[j]
        # Not the same as `vote < 0` where there is no number: a broken input must break the output.
        same = (vote > 0) if elected[j] >= 0 else not (vote >= 0)
        total[j] += vote if same else f32(0)
        divisor[j] += weight if same else f32(0)


@inner
def _finish(out: Raw, origin: Raw, total: Raw, divisor: Raw, scale: Any, normalize: Any) -> None:
    for j in range(out.size):
        share = divisor[j] if normalize and divisor[j] != 0 else f32(1)
        out[j] = store(origin[j] + scale * (total[j] / share), out[j])


@inner
def _widen_into(out: Raw, row: Raw) -> None:
    for j in range(out.size):
        out[j] = load(row[j])


def elect_sum(
    base: Raw,
    rows: Raw,
    weights: Raw,
    factors: Raw,
    cuts: Raw,
    edges: Raw,
    scale: float,
    normalize: bool,
    out: Raw,
) -> None:
    """Trim deltas, elect a sign per entry, add up those that agree.

    With ``D_i = factors[i] · (rows[i] − base)`` where the magnitude passes the cut, else 0, and ``s = Σ_i D_i``:
    ``out = base + scale · Σ_agree D_i / Σ_agree weights[i]``, an entry agreeing if its sign is that of s (0 counts
    as +) and it is not 0; the divisor is 1 where nothing agrees, and everywhere without `normalize`.

    Parameters:
        base, out: raw entries, shape (n,).
        rows: raw entries, shape (k, n).
        weights, factors: float32, shape (k,).
        cuts: uint32, shape (k,): bits of the least magnitude kept.
        edges: int64, shape (k,): of the entries whose magnitude equals the cut those up to this index are kept.
    """
    origins, sums = stack_array(1024, weights), stack_array(1024, weights)  # TILE: sizes must be literals
    totals, divisors = stack_array(1024, weights), stack_array(1024, weights)
    ballots = stack_array(8192, weights)  # ROOM tiles
    spare, again = stack_array(1024, weights), stack_array(1024, weights)  # for further models
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        size = stop - start
        origin, elected, total, divisor = origins[:size], sums[:size], totals[:size], divisors[:size]
        _widen_into(origin, base[start:stop])
        _clear(elected)
        _clear(total)
        _clear(divisor)
        for i in range(rows.shape[0]):
            votes = ballots[i * TILE : i * TILE + size] if i < ROOM else spare[:size]
            edge = np.int32(min(max(edges[i] - start, -1), TILE))
            _vote(votes, elected, rows[i, start:stop], origin, factors[i], cuts[i], edge)
        for i in range(rows.shape[0]):
            votes = ballots[i * TILE : i * TILE + size] if i < ROOM else spare[:size]
            if i >= ROOM:
                edge = np.int32(min(max(edges[i] - start, -1), TILE))
                _vote(votes, again[:size], rows[i, start:stop], origin, factors[i], cuts[i], edge)
            _agree(total, divisor, votes, elected, weights[i])
        _finish(out[start:stop], origin, total, divisor, f32(scale), normalize != 0)


@inner_sum
def _masses(row: Raw, base: Raw, cut: Any, edge: Any) -> Any:
    whole, kept = 0.0, 0.0
    for j in range(row.size):
        delta = load(row[j]) - load(base[j])
        bits = as_bits(delta) & MAGNITUDE
        mass = np.float64(abs(delta))
        whole += mass
        kept += mass if bits >= cut + u32(j > edge) else 0.0
    return whole, kept


def masses(row: Raw, base: Raw, cut: int, edge: int, sums: Raw) -> None:
    """Sum of magnitudes of ``row − base`` before and after trimming, per grain.

    Parameters:
        row, base: raw entries, shape (n,).
        cut, edge: as in :func:`elect_sum`.
        sums: float64, shape (grains, 2), written.
    """
    for grain in range(sums.shape[0]):
        start = grain * GRAIN
        stop = min(start + GRAIN, row.size)
        local = np.int32(min(max(edge - start, -1), GRAIN))
        whole, kept = _masses(row[start:stop], base[start:stop], u32(cut), local)
        sums[grain, 0] = whole
        sums[grain, 1] = kept
