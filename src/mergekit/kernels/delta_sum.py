"""Sums of thinned task vectors, with or without a majority sign: what TIES, DARE, Breadcrumbs and DELLA end in.

Entries of a delta are kept by magnitude, in a band between two cuts; then at random, with one probability for all
entries of a model. What is kept and scaled is a *vote*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner, inner_sum
from mergekit.kernels.noise import noise_into
from mergekit.kernels.numbers import MAGNITUDE, as_bits, as_float, f32, load, stack_array, store, u32

Raw = NDArray[Any]

TILE = 1024  # entries; the votes of a few models stay in the first-level cache
ROOM = 8  # models whose votes are kept between the two rounds; those of further models are computed again
NOTHING = 0xFFFFFFFF  # a cut that no magnitude passes
ALWAYS = 1 << 31  # a chance that all noise is below


@inner
def _scale(votes: Raw, row: Raw, origin: Raw, factor: Any) -> None:
    for j in range(votes.size):
        votes[j] = factor * (load(row[j]) - origin[j])


@inner
def _keep_large(votes: Raw, row: Raw, origin: Raw, factor: Any, least: Any) -> None:
    for j in range(votes.size):
        delta = load(row[j]) - origin[j]
        votes[j] = factor * delta if (as_bits(delta) & MAGNITUDE) >= least else f32(0)


@inner
def _keep_band(votes: Raw, row: Raw, origin: Raw, factor: Any, least: Any, top: Any) -> None:
    for j in range(votes.size):
        delta = load(row[j]) - origin[j]
        bits = as_bits(delta) & MAGNITUDE
        vote = factor * delta if bits >= least else f32(0)
        votes[j] = delta - delta if bits >= top else vote  # 0, or not a number: a broken input must break the output


@inner
def _keep_tied(votes: Raw, row: Raw, origin: Raw, factor: Any, cuts: Raw, edges: Any, model: Any) -> None:
    """The same where entries equal to a cut are kept up to an edge within the tile."""
    for j in range(votes.size):
        delta = load(row[j]) - origin[j]
        bits = as_bits(delta) & MAGNITUDE
        vote = factor * delta if bits >= cuts[0, model] + u32(j > edges[0]) else f32(0)
        votes[j] = delta - delta if bits >= cuts[1, model] + u32(j > edges[1]) else vote


@inner
def _keep_some(votes: Raw, noise: Raw, chance: Any) -> None:
    for j in range(votes.size):
        votes[j] = votes[j] if noise[j] < chance else votes[j] - votes[j]


@inner
def least_passing(cut: Any, edge: Any) -> Any:
    """The least magnitude that passes a cut where all that equal it do, or none does."""
    return cut if (edge >= 0) | (cut == u32(NOTHING)) else u32(cut + u32(1))


@inner
def _votes_of(
    votes: Raw,
    noise: Raw,
    row: Raw,
    origin: Raw,
    factor: Any,
    cuts: Raw,
    edges: Raw,
    chance: Any,
    place: Any,
    keys: Raw,
    model: Any,
) -> None:
    """What is kept in a tile that begins with entry `place` of the tensor."""
    own = (edges[0, model] - place, edges[1, model] - place)
    last = votes.size - 1
    if (0 <= own[0] < last) | (0 <= own[1] < last):
        _keep_tied(votes, row, origin, factor, cuts, own, model)
    else:
        least, top = least_passing(cuts[0, model], own[0]), least_passing(cuts[1, model], own[1])
        if top != u32(NOTHING):
            _keep_band(votes, row, origin, factor, least, top)
        elif least != u32(0):
            _keep_large(votes, row, origin, factor, least)
        else:
            _scale(votes, row, origin, factor)
    if chance < ALWAYS:
        noise_into(noise, place, keys[model])
        _keep_some(votes, noise, u32(chance))


@inner
def widen_into(out: Raw, row: Raw) -> None:
    """Raw entries as float32."""
    for j in range(out.size):
        out[j] = load(row[j])


@inner
def fill(tile: Raw, number: Any) -> None:
    """The same number everywhere."""
    for j in range(tile.size):
        tile[j] = number


@inner
def add(total: Raw, votes: Raw) -> None:
    """Add votes up."""
    for j in range(total.size):
        total[j] += votes[j]


@inner
def mark_negative(signs: Raw, elected: Raw) -> None:
    """The sign bit where the other sign than + is elected, or where there is no number."""
    for j in range(signs.size):
        signs[j] = u32(0) if elected[j] >= 0 else u32(0x80000000)


@inner
def _add_agreeing(total: Raw, votes: Raw, signs: Raw) -> None:
    for j in range(total.size):
        # True also where there is no number: a broken input must break the output.
        same = not (as_float(as_bits(votes[j]) ^ signs[j]) <= 0)
        total[j] += votes[j] if same else f32(0)


@inner
def _add_agreeing_shares(total: Raw, divisor: Raw, votes: Raw, signs: Raw, weight: Any) -> None:
    for j in range(total.size):
        same = not (as_float(as_bits(votes[j]) ^ signs[j]) <= 0)
        total[j] += votes[j] if same else f32(0)
        divisor[j] += weight if same else f32(0)


@inner
def _finish(out: Raw, base: Raw, total: Raw, divisor: Raw, scale: Any) -> None:
    for j in range(out.size):
        share = divisor[j] if divisor[j] != 0 else f32(1)
        out[j] = store(load(base[j]) + scale * (total[j] / share), out[j])


@inner
def _finish_plain(out: Raw, base: Raw, total: Raw, scale: Any) -> None:
    for j in range(out.size):
        out[j] = store(load(base[j]) + scale * total[j], out[j])


def delta_sum(
    base: Raw,
    reference: Raw,
    rows: Raw,
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
    out: Raw,
) -> None:
    """Thin deltas out, elect a sign per entry if asked to, add up.

    With the votes ``D_i = factors[i] · (rows[i] − reference)`` where the entry is kept, else 0:
    ``out = base + scale · Σ_i D_i``.
    With `elect` the sum is over the votes that have the sign of ``Σ_i D_i`` (0 counts as +) and are not 0; with
    `normalize` as well it is divided by the weights of these models, where there are any and they do not cancel.

    Parameters:
        base, out: raw entries, shape (n,).
        reference: raw entries, shape (n,): the base; or (0,) for zeros, if the rows are deltas.
        rows: raw entries, shape (k, n).
        weights, factors: float32, shape (k,).
        cuts: uint32, shape (2, k): bits of magnitudes; kept is what passes the first and not the second.
        edges: int64, shape (2, k): a magnitude equal to the cut passes up to this index in the tensor.
        chances: int64, shape (k,): kept are entries whose noise is below; `ALWAYS` draws no noise.
        first: index in the tensor of the first entry.
        keys: uint32, shape (k, 3), of the noise.
    """
    origins, sums = stack_array(1024, weights), stack_array(1024, weights)  # TILE: sizes must be literals
    totals, divisors = stack_array(1024, weights), stack_array(1024, weights)
    noises, more = stack_array(1024, keys), stack_array(1024, keys)
    ballots = stack_array(8192, weights)  # ROOM tiles
    spare = stack_array(1024, weights)  # for further models
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        size = stop - start
        origin, elected, total, divisor = origins[:size], sums[:size], totals[:size], divisors[:size]
        if reference.size == 0:
            fill(origin, f32(0))
        else:
            widen_into(origin, reference[start:stop])
        fill(elected, f32(0))
        for i in range(rows.shape[0]):
            votes = ballots[i * TILE : i * TILE + size] if i < ROOM else spare[:size]
            row, chance = rows[i, start:stop], chances[i]
            _votes_of(votes, noises[:size], row, origin, factors[i], cuts, edges, chance, first + start, keys, i)
            add(elected, votes)
        if elect:
            signs = noises[:size]
            mark_negative(signs, elected)
            fill(total, f32(0))
            fill(divisor, f32(0))
            for i in range(rows.shape[0]):
                votes = ballots[i * TILE : i * TILE + size] if i < ROOM else spare[:size]
                if i >= ROOM:
                    row, chance = rows[i, start:stop], chances[i]
                    _votes_of(votes, more[:size], row, origin, factors[i], cuts, edges, chance, first + start, keys, i)
                if normalize:
                    _add_agreeing_shares(total, divisor, votes, signs, weights[i])
                else:
                    _add_agreeing(total, votes, signs)
            if normalize:
                _finish(out[start:stop], base[start:stop], total, divisor, f32(scale))
            else:
                _finish_plain(out[start:stop], base[start:stop], total, f32(scale))
        else:
            _finish_plain(out[start:stop], base[start:stop], elected, f32(scale))


def thin(row: Raw, base: Raw, cuts: Raw, edges: Raw, chance: int, first: int, keys: Raw, out: Raw) -> None:
    """What is kept of one delta: the votes of :func:`delta_sum` with a factor of 1.

    Parameters:
        row, base: raw entries, shape (n,).
        cuts, edges: shape (2, 1).
        keys: shape (1, 3).
        out: float32, shape (n,), written.
    """
    origins, noises = stack_array(1024, out), stack_array(1024, keys)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        origin, noise = origins[: stop - start], noises[: stop - start]
        widen_into(origin, base[start:stop])
        votes, entries = out[start:stop], row[start:stop]
        _votes_of(votes, noise, entries, origin, f32(1), cuts, edges, chance, first + start, keys, 0)


def thin_by_rank(
    row: Raw, base: Raw, ranks: Raw, low: float, step: float, rescale: bool, first: int, keys: Raw, out: Raw
) -> None:
    """What is kept of a delta if the chance of an entry grows with its rank: ``p = low + step · rank``.

    Parameters:
        row, base: raw entries, shape (n,).
        ranks: int32, shape (n,).
        rescale: divide what is kept by its chance.
        first: index in the tensor of the first entry, for the noise.
        keys: uint32, shape (3,), of the noise.
        out: float32, shape (n,), written.
    """
    noises = stack_array(1024, keys)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        noise = noises[: stop - start]
        noise_into(noise, first + start, keys)
        _keep_ranked(out[start:stop], row[start:stop], base[start:stop], ranks[start:stop], noise, low, step, rescale)


@inner
def _keep_ranked(votes: Raw, row: Raw, base: Raw, ranks: Raw, noise: Raw, low: Any, step: Any, rescale: Any) -> None:
    for j in range(votes.size):
        chance = low + step * ranks[j]
        delta = load(row[j]) - load(base[j])
        vote = delta / f32(chance) if rescale else delta
        votes[j] = vote if noise[j] < chance * ALWAYS else delta - delta


@inner_sum
def _norms(votes: Raw, row: Raw, base: Raw) -> Any:
    mass, kept_mass, square, kept_square = 0.0, 0.0, 0.0, 0.0
    for j in range(votes.size):
        delta = np.float64(load(row[j]) - load(base[j]))
        kept = np.float64(votes[j])
        mass += abs(delta)
        kept_mass += abs(kept)
        square += delta * delta
        kept_square += kept * kept
    return mass, kept_mass, square, kept_square


@inner
def _greatest(votes: Raw, row: Raw, base: Raw) -> Any:
    greatest, kept = f32(0), f32(0)
    for j in range(votes.size):
        greatest = max(greatest, abs(load(row[j]) - load(base[j])))
        kept = max(kept, abs(votes[j]))
    return greatest, kept


def norms(votes: Raw, row: Raw, base: Raw, grain: int, sums: Raw) -> None:
    """Norms of a delta and of what is kept of it, per grain.

    Parameters:
        votes: float32, shape (n,).
        row, base: raw entries, shape (n,).
        grain: entries.
        sums: float64, shape (grains, 3, 2), written: sum of magnitudes, of squares, and greatest magnitude, each of
            the delta and of the votes.
    """
    for index in range(sums.shape[0]):
        start = index * grain
        stop = min(start + grain, row.size)
        mass, kept_mass, square, kept_square = _norms(votes[start:stop], row[start:stop], base[start:stop])
        greatest, kept_greatest = _greatest(votes[start:stop], row[start:stop], base[start:stop])
        sums[index, 0, 0] = mass
        sums[index, 0, 1] = kept_mass
        sums[index, 1, 0] = square
        sums[index, 1, 1] = kept_square
        sums[index, 2, 0] = greatest
        sums[index, 2, 1] = kept_greatest
