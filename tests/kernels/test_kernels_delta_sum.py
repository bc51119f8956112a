"""What is kept of deltas, exactly, and how it is added up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, decode, encode, weights_like

from mergekit.kernels import GRAIN, fused, grains
from mergekit.kernels.delta_sum import ALWAYS, NOTHING, ROOM, TILE
from mergekit.kernels.streams import stream_keys, threshold

TOP = 0x7FFFFFFF
FAR = 10**12
EVERYTHING, NONE = (0, FAR), (NOTHING, -1)
ONE = np.array([1], np.float32)


def cut_of(*cuts):
    """Bits and edges, shape (2, k), from pairs for each model of (bits, edge)."""
    bits, edges = np.ascontiguousarray(np.array(cuts, np.int64).transpose(2, 1, 0))
    return bits.astype(np.uint32), edges


def add_up(base, rows, cuts, *, chances=None, elect=True, normalize=True, weights=None, first=0, deltas=False):
    """A delta sum with weights of 1 where none are given; of rows that are deltas, if that is said."""
    reference = rows[0, :0] if deltas else base
    count = len(rows)
    weights = np.ones(count, np.float32) if weights is None else np.array(weights, np.float32)
    chances = np.full(count, ALWAYS) if chances is None else np.array(chances)
    keys = np.stack([stream_keys(0, "w", model) for model in range(count)])
    out = np.empty_like(base)
    fused.delta_sum(base, reference, rows, weights, weights, *cuts, chances, first, keys, elect, normalize, 1.0, out)
    return out


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("edge", [-FAR, -1, 0, 1, TILE - 2, TILE - 1, TILE, 2 * TILE, 3000, 3001, FAR])
def test_equal_magnitudes_are_kept_up_to_the_edge(name, edge):
    size = 3002
    base, row = encode(np.zeros(size), name), encode(np.where(np.arange(size) % 3, 1.0, -1.0), name)
    one = int(ONE.view(np.uint32)[0])
    out = add_up(base, row[None], cut_of([(one, edge), NONE]))
    np.testing.assert_array_equal(decode(out), np.where(np.arange(size) <= edge, decode(row), 0))
    out = add_up(base, row[None], cut_of([EVERYTHING, (one, edge)]))
    np.testing.assert_array_equal(decode(out), np.where(np.arange(size) > edge, decode(row), 0))


@pytest.mark.parametrize("edge", [-1, 0, FAR])
def test_a_cut_beyond_all_numbers_keeps_nothing(edge):
    row = np.array([1, -2, np.inf, 3.4e38, 0], np.float32)
    base = np.zeros_like(row)
    np.testing.assert_array_equal(add_up(base, row[None], cut_of([(NOTHING, edge), NONE])), base)


@pytest.mark.parametrize("elect", [True, False])
def test_a_broken_input_breaks_the_output(elect):
    rows = np.array([[1, np.nan, 2], [1, 1, np.nan]], np.float32)
    out = add_up(np.zeros(3, np.float32), rows, cut_of(*[[EVERYTHING, NONE]] * 2), elect=elect)
    np.testing.assert_array_equal(np.isnan(out), [False, True, True])


def bits_of(row, base):
    return (decode(row) - decode(base)).view(np.uint32) & np.uint32(TOP)


def passing(bits, cut, edge):
    return (bits > cut) | ((bits == cut) & (np.arange(bits.size) <= edge))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 4 * TILE), st.integers(0, 10**6), st.data())
def test_votes_are_kept_within_the_band_and_below_the_chance(name, size, seed, data):
    base = weights_like(seed, size, name)
    row = encode(decode(base) + np.random.default_rng(seed).integers(-20, 21, size) * 2.0**-11, name)
    bits = bits_of(row, base)
    cuts = st.sampled_from([0, *bits[:5].tolist(), TOP, NOTHING])
    edges = st.sampled_from([-FAR, -1, 0, size // 2, TILE - 1, TILE, size, FAR])
    low, high = [(data.draw(cuts), data.draw(edges)) for _ in range(2)]
    chance, first = data.draw(st.sampled_from([0.0, 0.3, 1.0])), data.draw(st.sampled_from([0, 4096, 2**32 - 50]))
    kept = passing(bits, *low) & ~passing(bits, *high)
    noise = np.empty(size, np.uint32)
    fused.noise(first, stream_keys(0, "w", 0), noise)
    kept &= noise < threshold(chance)
    votes = np.empty(size, np.float32)
    keys = stream_keys(0, "w", 0)[None]
    cuts, edges = cut_of([low, high])
    fused.thin(row, base, cuts, edges + first, threshold(chance), first, keys, votes)
    np.testing.assert_array_equal(votes, np.where(kept, decode(row) - decode(base), 0))
    out = add_up(base, row[None], (cuts, edges + first), chances=[threshold(chance)], elect=False, first=first)
    np.testing.assert_array_equal(out, encode(decode(base) + votes, name))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, ROOM + 4), st.integers(1, 3 * TILE), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_votes_of_any_number_of_models_are_added_alike(count, size, elect, normalize, seed):
    random = np.random.default_rng(seed)
    base = random.integers(-99, 99, size).astype(np.float32)
    rows = base + random.integers(-9, 9, (count, size)).astype(np.float32)
    weights = random.choice([-1, 1, 2], count)
    chances = random.choice([ALWAYS, threshold(0.5)], count)
    cuts = cut_of(*[[EVERYTHING, NONE]] * count)
    found = add_up(base, rows, cuts, chances=chances, weights=weights, elect=elect, normalize=normalize)
    votes = np.empty((count, size), np.float32)
    for model in range(count):
        own = cut_of([EVERYTHING, NONE])
        fused.thin(rows[model], base, *own, int(chances[model]), 0, stream_keys(0, "w", model)[None], votes[model])
    expected = expected_sum(base, votes.astype(np.float64), weights, elect, normalize)
    out = add_up(base, votes, cuts, weights=weights, elect=elect, normalize=normalize, deltas=True)
    # Base and votes may cancel: float32 promises closeness to the terms, not to what is left of them.
    bound = 4 * np.finfo(np.float32).eps * (np.abs(base) + np.abs(votes * weights[:, None]).sum(axis=0))
    assert np.all(np.abs(found - expected) <= bound)
    assert np.all(np.abs(out - expected) <= bound)


def expected_sum(base, votes, weights, elect, normalize):
    """The sum in float64, votes without weights."""
    weighted = votes * weights[:, None]
    if not elect:
        return base + weighted.sum(axis=0)
    agree = np.sign(weighted) == np.where(weighted.sum(axis=0) >= 0, 1, -1)
    total, divisor = (weighted * agree).sum(axis=0), (weights[:, None] * agree).sum(axis=0)
    return base + (total / np.where(divisor == 0, 1, divisor) if normalize else total)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_chances_grow_with_ranks(name, rescale):
    size = 5000
    base, row = weights_like(1, size, name), weights_like(2, size, name)
    ranks = np.random.default_rng(3).integers(0, 200, size).astype(np.int32)
    low, step, keys = 0.2, 0.003, stream_keys(0, "w", 0)
    noise, votes = np.empty(size, np.uint32), np.empty(size, np.float32)
    fused.noise(77, keys, noise)
    fused.thin_by_rank(row, base, ranks, low, step, rescale, 77, keys, votes)
    chance = low + step * ranks
    delta = decode(row) - decode(base)
    kept = noise / 2.0**31 < chance
    np.testing.assert_allclose(votes, np.where(kept, delta / chance if rescale else delta, 0), rtol=1e-6)
    assert 0.4 < kept.mean() < 0.6


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 3 * GRAIN), st.integers(0, 10**6))
def test_norms_of_the_whole_and_of_what_is_kept(name, size, seed):
    base, row = weights_like(seed, size, name), weights_like(seed + 1, size, name)
    delta = (decode(row) - decode(base)).astype(np.float64)
    votes = (delta * (np.random.default_rng(seed).random(size) < 0.5)).astype(np.float32)
    sums = np.full((grains(size), 3, 2), np.nan)
    fused.norms(votes, row, base, GRAIN, sums)
    for grain, start in enumerate(range(0, size, GRAIN)):
        for side, values in enumerate((delta, votes.astype(np.float64))):
            part = np.abs(values[start : start + GRAIN])
            expected = [part.sum(), (part**2).sum(), part.max()]
            np.testing.assert_allclose(sums[grain, :, side], expected, rtol=1e-12)
