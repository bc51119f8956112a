"""Ranks within rows, against NumPy's sort; inputs of every kind that the kernel treats in a way of its own."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, RAW, decode, encode, weights_like

from mergekit.kernels import arrays, fused
from mergekit.kernels.arrays import rank_scratch
from mergekit.kernels.delta_sum import ALWAYS, NOTHING
from mergekit.kernels.fused import row_ranks
from mergekit.kernels.ranks import BINS, FEW, REACH
from mergekit.kernels.streams import stream_keys

MARK = 0xDEADBEEF
BEYOND = 64  # entries after an output or scratch, to see whether something is written there


def ranks_of(row, base, width):
    """The kernel's answer, with scratch of just the size it asks for, full of leftovers."""
    scratch = np.full(rank_scratch(width) + BEYOND, MARK, np.uint32)
    ranks = np.full(row.size + BEYOND, -7, np.int32)
    row_ranks(row, base, width, scratch[:-BEYOND], ranks[: row.size])
    assert (scratch[-BEYOND:] == MARK).all()
    assert (ranks[row.size :] == -7).all()
    return ranks[: row.size]


def bits_of(row, base):
    with np.errstate(all="ignore"):
        return (decode(row) - decode(base)).view(np.uint32) & np.uint32(0x7FFFFFFF)


def expected(row, base, width):
    """Twice the lesser ones plus the other equal ones, from each row in order."""
    found = np.empty((row.size // width, width), np.int64)
    for ranks, magnitudes in zip(found, bits_of(row, base).reshape(-1, width), strict=True):
        order = np.argsort(magnitudes)
        ordered = magnitudes[order]
        ranks[order] = np.searchsorted(ordered, ordered, "left") + np.searchsorted(ordered, ordered, "right") - 1
    return found.ravel()


def trained(seed, size, name):
    """As fine-tuning leaves them: in 16 bits, many deltas are equal."""
    base = encode(np.random.default_rng(seed).normal(0, 0.02, size), name)
    return encode(decode(base) + np.random.default_rng(seed + 1).normal(0, 1e-3, size), name), base


def few_values(seed, size, name):
    base = weights_like(seed, size, name)
    return encode(decode(base) + np.random.default_rng(seed).integers(-20, 21, size) * 2.0**-11, name), base


def mostly_zero(seed, size, name):
    row, base = trained(seed, size, name)
    return np.where(np.random.default_rng(seed).random(size) < 0.9, base, row), base


def all_zero(seed, size, name):
    base = weights_like(seed, size, name)
    return base.copy(), base


def one_magnitude(seed, size, name):
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size)
    return encode(0.25 * signs, name), np.zeros(size, RAW[name])


def two_scales(seed, size, name):
    """Nearly all entries fall into a few bins, and differ there."""
    random = np.random.default_rng(seed)
    scale = np.where(random.random(size) < 0.02, 1e3, 1e-3)
    return encode(random.normal(0, 1, size) * scale, name), np.zeros(size, RAW[name])


def clusters(seed, size, name):
    """Some bins hold a few values each, many times."""
    random = np.random.default_rng(seed)
    return encode(1 + random.integers(0, 8, size) + random.integers(0, 3, size) / 512, name), np.zeros(size, RAW[name])


def subnormal(seed, size, name):
    random = np.random.default_rng(seed)
    if name == "F32":
        return random.integers(0, 500, size).astype(np.uint32).view(np.float32), np.zeros(size, np.float32)
    return random.integers(0, 100, size).astype(RAW[name]), random.integers(0, 3, size).astype(RAW[name])


def every_exponent(seed, size, name):
    """All finite numbers, alike by their bits; differences may be infinite."""
    random = np.random.default_rng(seed)
    kind = np.uint32 if name == "F32" else np.uint16
    row = random.integers(0, np.iinfo(kind).max, size, kind, endpoint=True).view(RAW[name])
    base = random.integers(0, np.iinfo(kind).max, size, kind, endpoint=True).view(RAW[name])
    finite = np.isfinite(decode(row)) & np.isfinite(decode(base))
    return np.where(finite, row, np.zeros_like(row)), np.where(finite, base, np.zeros_like(base))


def some_infinite(seed, size, name):
    row, base = trained(seed, size, name)
    infinite = np.random.default_rng(seed).random(size) < 0.1
    return np.where(infinite, encode(np.full(size, -np.inf), name), row), base


KINDS = (
    trained,
    few_values,
    mostly_zero,
    all_zero,
    one_magnitude,
    two_scales,
    clusters,
    subnormal,
    every_exponent,
    some_infinite,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(FORMATS), st.integers(1, 1500), st.integers(0, 4), st.integers(0, 10**6))
@example(trained, "F32", 4864, 2, 0)
@example(trained, "BF16", 14336, 2, 0)
def test_ranks_are_those_of_a_sort(kind, name, width, rows, seed):
    row, base = kind(seed, rows * width, name)
    np.testing.assert_array_equal(ranks_of(row, base, width), expected(row, base, width))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 3, FEW, FEW + 1, REACH, REACH + 1, 255, 256, 257, 1152])
def test_widths_at_which_the_way_changes(kind, name, width):
    row, base = kind(width, 3 * width, name)
    np.testing.assert_array_equal(ranks_of(row, base, width), expected(row, base, width))


@pytest.mark.parametrize("crowd", [FEW - 1, FEW, FEW + 1, REACH - 1, REACH, REACH + 1])
@pytest.mark.parametrize("step", [0, 1])
def test_a_bin_with_a_given_number_of_entries(crowd, step):
    """Of neighbouring values, or a single one; the greatest value makes bins so wide that they share one."""
    row = np.r_[2.0**20, 1 + step * np.arange(crowd) * 2.0**-23, np.zeros(40)].astype(np.float32)
    row = np.random.default_rng(crowd).permutation(row)
    base = np.zeros_like(row)
    np.testing.assert_array_equal(ranks_of(row, base, row.size), expected(row, base, row.size))


def test_a_row_wider_than_there_are_bins():
    row, base = trained(5, BINS + 3, "F32")
    np.testing.assert_array_equal(ranks_of(row, base, row.size), expected(row, base, row.size))


def test_equal_magnitudes_share_the_middle_of_their_places():
    row = np.array([3, -1, 0, 1, -1, 5, 0, 0.5], np.float32)
    assert ranks_of(row, np.zeros_like(row), 8).tolist() == [12, 8, 1, 8, 8, 14, 1, 4]


def test_a_row_of_one_has_rank_0():
    row, base = trained(1, 50, "BF16")
    assert ranks_of(row, base, 1).tolist() == [0] * 50


def test_no_rows():
    empty = np.empty(0, np.float32)
    assert ranks_of(empty, empty, 7).size == 0


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 800), st.integers(0, 10**6), st.sampled_from([0.01, 0.5, 1.0]))
def test_undefined_magnitudes_are_the_greatest(name, width, seed, share):
    row, base = trained(seed, 2 * width, name)
    random = np.random.default_rng(seed)
    broken = random.random(row.size) < share
    kind = np.uint32 if name == "F32" else np.uint16
    exponent = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}[name]
    payload = random.integers(1, np.iinfo(kind).max, row.size, kind, endpoint=True) | np.array(exponent, kind)
    row = np.where(broken, payload.view(RAW[name]), row)
    undefined = np.isnan(decode(row))
    ranks = ranks_of(row, base, width).reshape(2, width)
    for found, exact, lost in zip(
        ranks, expected(row, base, width).reshape(2, width), undefined.reshape(2, width), strict=True
    ):
        np.testing.assert_array_equal(found[~lost], exact[~lost])
        assert (found[lost] > 2 * (~lost).sum() - 1).all()
        assert (found[lost] <= 2 * (width - 1)).all()
        assert found.sum() == width * (width - 1)


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), width=st.integers(1, 600), rows=st.integers(0, 4), seed=st.integers(0, 10**6))
def test_the_twin_ranks_alike(library, kind, width, rows, seed):
    row, base = kind(seed, rows * width, "F32")
    scratch, found = np.empty(rank_scratch(width), np.uint32), []
    for reducers, wrapped in ((fused, np.asarray), (arrays, library)):
        found.append(np.full(row.size, -7, np.int32))
        with np.errstate(over="ignore"):
            reducers.row_ranks(wrapped(row), wrapped(base), width, scratch, found[-1])
    np.testing.assert_array_equal(found[1], found[0])


@pytest.mark.parametrize("width", [300, 896, 5000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_16_bits_with_few_and_with_many_entries_in_mixed_bins(width, spread):
    """The wider the magnitudes spread, the more share a bin; both ways of telling those apart must be taken."""
    random = np.random.default_rng(width)
    base = weights_like(1, 3 * width, "BF16")
    row = encode(decode(base) + 0.01 * np.exp(spread * random.normal(0, 1, 3 * width)), "BF16")
    np.testing.assert_array_equal(ranks_of(row, base, width), expected(row, base, width))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("elect", [True, False])
def test_a_ranked_sum_is_thinning_by_rank_and_adding_up(name, elect):
    width, lines, count, first = 130, 40, 3, 2 * 130
    size = width * lines
    base = weights_like(1, size, name)
    rows = np.stack([encode(decode(base) + weights_like(seed, size, "F32") / 8, name) for seed in range(2, 2 + count)])
    low, step = np.array([0.3, 1.0, 0.1]), np.array([0.4, 0.0, 0.8]) / (2 * (width - 1))
    keys = np.stack([stream_keys(0, "w", model) for model in range(count)])
    weights = np.array([0.5, 0.3, 0.2], np.float32)
    cuts = np.array([[0] * count, [NOTHING] * count], np.uint32), np.array([[size] * count, [-1] * count])
    chances, votes = np.full(count, ALWAYS), np.empty((count, size), np.float32)
    for i, own in enumerate(votes):
        ranks = ranks_of(rows[i], base, width)[:size].copy() if step[i] else np.zeros(size, np.int32)
        fused.thin_by_rank(rows[i], base, ranks, low[i], step[i], True, first, keys[i], own)
    expected_sum, out = np.empty_like(base), np.empty_like(base)
    adding = (weights, weights, *cuts, chances, first, keys, elect, False, 0.7)
    fused.delta_sum(base, votes[0, :0], votes, *adding, expected_sum)
    room = np.empty(rank_scratch(width), np.uint32), np.empty(width, np.int32), np.empty((count, width), np.float32)
    fused.ranked_sum(base, base, rows, width, low, step, True, *adding, *room, out)
    np.testing.assert_array_equal(out, expected_sum)
    assert (out != base).any()
