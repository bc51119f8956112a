"""Variances of entries over models, what they select, and the weighted mean of what is selected."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, RAW, assert_rounded_sum, decode, encode, weights_like

from mergekit.kernels import GRAIN, arrays, fused
from mergekit.kernels.spread import TILE

SIZES = (0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 7)
STEP = 2.0**-12


def stack(seed, count, size, name="F32", steps=0):
    """A base and models near it; with `steps`, deltas are few numbers."""
    random = np.random.default_rng(seed)
    base = np.rint(random.normal(0, 0.05, size) / STEP) * STEP
    moved = random.integers(-steps, steps + 1, (count, size)) * STEP if steps else random.normal(0, 0.01, (count, size))
    return encode(base, name), encode(base + moved, name)


def scored(rows):
    scores = np.full(rows.shape[1], 77, np.float32)
    fused.spread(rows, scores)
    return scores


def kept_of(rows, cut, edge):
    bits = scored(rows).view(np.uint32)
    index = np.arange(rows.shape[1])
    return (bits > cut) | ((bits == cut) & (index <= edge)) | (cut == 0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_scores_are_variances_but_for_a_factor(name, size, count):
    _, rows = stack(size, count, size, name)
    wanted = count**2 * decode(rows).astype(np.float64).var(axis=0)
    np.testing.assert_allclose(scored(rows), wanted, rtol=1e-6, atol=1e-16)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), scale=st.sampled_from([1e-10, 1e-5, 1.0, 1e15]))
def test_scores_are_zero_just_where_all_models_agree(seed, count, scale):
    random = np.random.default_rng(seed)
    same = random.normal(0, scale, 300)
    rows = encode(np.stack([same + (random.random(300) < 0.03) * random.normal(0, scale, 300)] * count), "F32")
    for row in rows[1:]:
        places = random.random(300) < 0.05
        row[places] = np.nextafter(row[places], np.float32(np.inf))
    differ = (rows != rows[0]).any(axis=0)
    np.testing.assert_array_equal(scored(rows) != 0, differ)
    assert (scored(rows) >= 0).all()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_equal_differences_have_equal_scores_wherever_they_lie(count):
    base, rows = stack(3, count, 4000, steps=2)
    steps = np.rint((rows - base) / STEP).astype(int)
    patterns, scores = {}, scored(rows)
    for place, pattern in enumerate(map(tuple, np.sort(steps - steps.min(axis=0), axis=0).T.tolist())):
        assert patterns.setdefault(pattern, scores[place]) == scores[place]
    assert len(patterns) > 3


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("edge", [-5, -1, 0, 700, TILE, 10**12])
def test_energies_are_sums_of_squares_of_what_is_kept(name, edge):
    size = 2 * GRAIN + 77
    base, rows = stack(5, 3, size, name, steps=2)
    bits = scored(rows).view(np.uint32)
    deltas = decode(rows).astype(np.float64) - decode(base)
    for cut in (0, int(np.sort(bits)[size // 2]), int(bits.max()), 0xFFFFFFFF):
        sums = np.full((3, 3), 77.0)
        fused.spread_energies(base, rows, cut, edge, GRAIN, sums)
        squares = (deltas * kept_of(rows, cut, edge)) ** 2
        wanted = [squares[:, start : start + GRAIN].sum(axis=1) for start in range(0, size, GRAIN)]
        np.testing.assert_allclose(sums, wanted, rtol=1e-12)


def expected_mean(base, rows, weights, kept):
    deltas = (decode(rows).astype(np.float64) - decode(base)) * kept
    elected = np.where(deltas.sum(axis=0) >= 0, 1, -1)
    agree = (np.sign(deltas) == elected) * weights[:, None].astype(np.float64)
    divisor = agree.sum(axis=0)
    return decode(base) + (agree * deltas).sum(axis=0) / np.where(divisor == 0, 1, divisor)


@pytest.mark.parametrize("out_name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_mean_of_what_agrees(out_name, size, count):
    base, rows = stack(size, count, size, steps=3)
    weights = np.random.default_rng(count).uniform(0, 1, count).astype(np.float32)
    weights[0] = 0
    bits = scored(rows).view(np.uint32)
    for cut, edge in ((0, 0), (int(np.sort(bits)[size // 2]) if size else 1, size // 3), (0xFFFFFFFF, -1)):
        out = np.full(size, 77, RAW[out_name])
        fused.spread_mean(base, rows, weights, cut, edge, out)
        wanted = expected_mean(base, rows, weights, kept_of(rows, cut, edge))
        assert_rounded_sum(out, wanted, np.abs(wanted) + 4 * STEP, out_name, operations=2 * count)


def test_broken_entries_break_the_mean():
    rows = np.array([[np.nan, 1, np.inf], [1, 2, 3]], np.float32)
    out = np.empty(3, np.float32)
    fused.spread_mean(np.zeros(3, np.float32), rows, np.array([0.5, 0.5], np.float32), 0, 0, out)
    np.testing.assert_array_equal(out, [np.nan, 1.5, np.inf])


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy])
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), size=st.integers(1, 2 * GRAIN), count=st.integers(1, 4), steps=st.sampled_from([0, 2])
)
def test_twins(wrap, seed, size, count, steps):
    base, rows = stack(seed, count, size, steps=steps)
    twin = np.empty(size, np.float32)
    arrays.spread(wrap(rows), twin)
    np.testing.assert_allclose(twin, scored(rows), rtol=1e-6, atol=1e-20)
    cut = int(twin[0].view(np.uint32))
    if steps or cut == 0:  # else the twin may round another way
        sums = [np.empty((-(-size // GRAIN), count)) for _ in range(2)]
        fused.spread_energies(base, rows, cut, size // 2, GRAIN, sums[0])
        arrays.spread_energies(wrap(base), wrap(rows), cut, size // 2, GRAIN, sums[1])
        np.testing.assert_allclose(sums[1], sums[0], rtol=1e-12)
        np.testing.assert_array_equal(
            arrays.host(arrays.selected(wrap(rows), cut, size // 2)), kept_of(rows, cut, size // 2)
        )


def test_weights_like_trained_ones_tie_at_zero():
    row = weights_like(1, 5000, "BF16")
    np.testing.assert_array_equal(scored(np.stack([row, row, row])), np.zeros(5000))
