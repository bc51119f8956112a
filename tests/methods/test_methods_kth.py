"""`Kth` finds exactly the entries that a stable sort puts first, `Gram` and `Norms` exactly rounded sums."""

import math

import numpy as np
import pytest
from driver import PATHS, Stage, search
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import RAW, decode, encode

from mergekit.kernels import GRAIN
from mergekit.methods import Target
from mergekit.methods.reductions import Gram, Kth, Magnitude, Norms, Score, exact_sums, trimmed

MOST_SWEEPS = 6
REDUCERS = [path for path in PATHS if path != "default"]


def magnitudes(rows):
    """Magnitudes of the deltas, in float32 as methods see them."""
    wide = decode(rows).reshape(rows.shape)
    return np.abs(wide[1:] - wide[0])


def kept_entries(cut, magnitude):
    bits, (cut_bits, edge) = magnitude.view(np.uint32), (cut.bits[0, 0], cut.edges[0, 0])
    return (bits > cut_bits) | ((bits == cut_bits) & (np.arange(bits.size) <= edge))


def assert_kept(cut, magnitude, density):
    """The cut keeps what a stable sort of all magnitudes puts first."""
    kept = kept_entries(cut, magnitude)
    wanted = max(1, int(density * magnitude.size))
    first = np.argsort(-magnitude.astype(np.float64), kind="stable")[:wanted]
    if cut.bits[0, 0] == 0:
        np.testing.assert_array_equal(kept | (magnitude == 0), np.ones(magnitude.size, bool))
        assert wanted == magnitude.size or (magnitude[first] == 0).any()
    else:
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(first))


def trim_to(*densities):
    """The cuts that trim the models to these densities."""
    scores = tuple(map(Magnitude, range(len(densities))))
    return Kth("cut", scores, lambda entries, stats: [(trimmed(entries, density),) for density in densities])


def staged(rows, path="fused", grain=GRAIN, **staging):
    return Stage(rows, True, Target("tensor", (rows.shape[1],), grain), path, **staging)


def found_cut(rows, density, **staging):
    cut, sweeps = search(trim_to(density), staged(rows, **staging), {})
    assert sweeps <= MOST_SWEEPS
    return cut


def continuous(random, size):
    return random.normal(0, 0.01, size)


def few_values(random, size):
    return random.choice([0, 1e-3, -1e-3, 2e-3, 5e-3], size)


def mostly_zero(random, size):
    return random.normal(0, 0.01, size) * (random.random(size) < 0.05)


def all_equal(random, size):
    return np.full(size, 0.25) * random.choice([-1, 1], size)


def all_zero(random, size):
    return np.zeros(size)


def quantised(random, size):
    return decode(encode(random.normal(0, 0.01, size), "BF16"))


def wide_range(random, size):
    return np.exp(random.uniform(-85, 85, size)) * random.choice([-1, 1], size)


def subnormal(random, size):
    return random.integers(-50, 50, size) * 2.0**-149


def close_together(random, size):
    return 1 + random.integers(0, 300, size) * 2.0**-23


VALUES = [
    continuous,
    few_values,
    mostly_zero,
    all_equal,
    all_zero,
    quantised,
    wide_range,
    subnormal,
    close_together,
]
sizes = st.integers(1, 5) | st.integers(6, 3000) | st.integers(3000, 20_000)
densities = st.floats(0, 1, exclude_min=True, exclude_max=True) | st.sampled_from([1e-9, 0.1, 0.29, 0.5, 0.9, 1 - 1e-9])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(VALUES), sizes, densities, st.integers(0, 10**6), st.sampled_from([1, 2, None]))
def test_a_cut_keeps_what_a_stable_sort_puts_first(values, size, density, seed, stripe):
    rows = np.zeros((2, size), np.float32)
    rows[1] = values(np.random.default_rng(seed), size)
    cut = found_cut(rows, density, stripe=stripe, workers=1 + seed % 3, grain=256)
    assert_kept(cut, magnitudes(rows)[0], density)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["BF16", "F16"]), st.integers(1, 20_000), densities, st.integers(0, 10**6))
def test_deltas_of_half_precision_tie_often_and_are_cut_exactly(name, size, density, seed):
    random = np.random.default_rng(seed)
    base = random.normal(0, 0.05, size)
    rows = encode(np.stack([base, base + random.normal(0, 0.002, size)]), name)
    cut = found_cut(rows, density, stripe=1, workers=2, grain=256)
    assert_kept(cut, magnitudes(rows)[0], density)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("density", [1e-4, 0.3, 0.999])
def test_large_tensors(values, density):
    rows = np.zeros((2, 200_000), np.float32)
    rows[1] = values(np.random.default_rng(5), rows.shape[1])
    assert_kept(found_cut(rows, density, stripe=4, workers=2), magnitudes(rows)[0], density)


def periodic(size, sampled, grain, inside, outside):
    """Entries that the sample sees, and others."""
    row = np.full(size, outside, np.float64)
    for index in range(sampled):
        start = grain * ((size // grain - 1) * index // (sampled - 1))
        row[start : start + grain] = inside
    return row


MISLEADING = [
    (1, 1000),
    (1000, 1),
    (0, 1),
    (1, 0),
    (1.0, 1 + 2.0**-23),
    (1 + 2.0**-23, 1.0),
    (1e-40, 1e38),
    (1e38, 1e-40),
]


@pytest.mark.parametrize("noise", [0, 1e-3])
@pytest.mark.parametrize(("inside", "outside"), MISLEADING)
@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.9])
def test_a_sample_that_misleads_costs_sweeps_but_no_entry(inside, outside, density, noise):
    random = np.random.default_rng(1)
    row = periodic(30_000, 8, 256, inside, outside) * (1 + noise * random.normal(size=30_000))
    rows = np.zeros((2, row.size), np.float32)
    rows[1] = row
    cut = found_cut(rows, density, stripe=1, workers=2, grain=256, sampled=8)
    assert_kept(cut, magnitudes(rows)[0], density)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(VALUES), st.sampled_from(VALUES), densities, st.integers(0, 10**6))
def test_a_sample_of_another_tensor_altogether(values, others, density, seed):
    random = np.random.default_rng(seed)
    rows, strange = np.zeros((2, 9000), np.float32), np.zeros((2, 300), np.float32)
    rows[1], strange[1] = values(random, 9000), others(random, 300)
    stage = staged(rows, stripe=1)
    kth = trim_to(density)

    class Misled:
        name = "cut"

        def begin(self, target, sample, stats):
            return kth.begin(target, lambda: [stage.block(strange, 0)], stats)

    cut, sweeps = search(Misled(), stage, {})
    assert sweeps <= MOST_SWEEPS
    assert_kept(cut, magnitudes(rows)[0], density)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(VALUES), st.integers(1, 12_000), st.lists(densities, min_size=3, max_size=3), st.integers(0, 99))
def test_all_reducers_find_the_same_cuts(values, size, keep, seed):
    random = np.random.default_rng(seed)
    rows = np.stack([np.zeros(size), *(values(random, size) for _ in keep)]).astype(np.float32)
    cuts = [search(trim_to(*keep), staged(rows, path, stripe=1), {})[0] for path in REDUCERS]
    for cut in cuts[1:]:
        np.testing.assert_array_equal(cut.bits, cuts[0].bits)
        np.testing.assert_array_equal(cut.edges, cuts[0].edges)
    assert cuts[0].bits.dtype == np.uint32
    assert cuts[0].edges.dtype == np.int64


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(VALUES), densities, st.integers(0, 99))
def test_cuts_do_not_depend_on_stripes_workers_or_the_sample(values, density, seed):
    size = 5 * GRAIN + 77
    rows = np.zeros((2, size), np.float32)
    rows[1] = values(np.random.default_rng(seed), size)
    stagings = [
        {},
        {"stripe": 1, "workers": 4},
        {"stripe": 3, "sampled": 2},
        {"stripe": 2, "sampled": 1000},
        {"stripe": 3, "grain": 100, "workers": 2},
        {"grain": size},
    ]
    kept = [kept_entries(found_cut(rows, density, **staging), magnitudes(rows)[0]) for staging in stagings]
    for entries in kept[1:]:
        np.testing.assert_array_equal(entries, kept[0])


@pytest.mark.parametrize(("density", "kept"), [(0, 0), (-1, 0), (1, 5), (1.5, 5), (1e-9, 1), (0.39, 1), (0.4, 2)])
def test_how_many_entries_a_density_keeps(density, kept):
    rows = np.array([[0, 0, 0, 0, 0], [1, -3, 2, 3, -1]], np.float32)
    cut, _ = search(trim_to(density), staged(rows), {})
    assert kept_entries(cut, magnitudes(rows)[0]).sum() == kept


class Own(Score):
    """The entries of a model themselves."""

    def rows(self, block):
        return block.models[0], block.base[:0]


@pytest.mark.parametrize("path", REDUCERS)
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(VALUES), st.lists(st.integers(1, 9000), min_size=1, max_size=4), st.integers(0, 99))
def test_several_ranks_of_one_score_without_edges(path, values, ranks, seed):
    rows = np.ones((2, 9000), np.float32)
    rows[1] = values(np.random.default_rng(seed), 9000)
    kth = Kth("cut", (Own(),), lambda entries, stats: [ranks], edges=False)
    cut, _ = search(kth, staged(rows, path, grain=512, stripe=3, workers=2), {})
    descending = -np.sort(-np.abs(rows[1]))
    np.testing.assert_array_equal(cut.bits[:, 0].view(np.float32), [descending[rank - 1] for rank in ranks])


def test_ranks_may_depend_on_what_was_found_before():
    rows = np.array([[0, 0, 0, 0], [4, 3, 2, 1]], np.float32)
    kth = Kth("cut", (Magnitude(0),), lambda entries, stats: [[entries - stats["few"]]])
    cut, _ = search(kth, staged(rows), {"few": 1})
    assert kept_entries(cut, magnitudes(rows)[0]).tolist() == [True, True, True, False]


def test_nothing_is_read_where_nothing_is_trimmed():
    rows = np.ones((3, 9000), np.float32)
    _, sweeps = search(trim_to(1.0, 0.0), staged(rows), {})
    assert sweeps == 0


def test_a_good_sample_saves_sweeps():
    rows = np.zeros((4, 200_000), np.float32)
    rows[1:] = np.random.default_rng(0).normal(0, 0.01, (3, 200_000))
    sampled = staged(rows, stripe=8, sampled=8)
    guessed = staged(rows, stripe=4000, grain=2, sampled=2)
    kth = trim_to(0.2, 0.5, 0.8)
    assert search(kth, sampled, {})[1] < search(kth, guessed, {})[1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.data())
def test_exact_sums_do_not_depend_on_order_or_cuts(count, seed, data):
    random = np.random.default_rng(seed)
    parts = random.normal(size=(count, 2, 2)) * 10.0 ** random.integers(-15, 15, (count, 1, 1))
    whole = exact_sums([parts])
    expected = [[math.fsum(parts[:, i, j]) for j in range(2)] for i in range(2)]
    np.testing.assert_array_equal(whole, expected)
    edges = sorted(data.draw(st.sets(st.integers(1, count), max_size=4)))
    np.testing.assert_array_equal(exact_sums(np.split(parts[random.permutation(count)], edges)), whole)


def test_exact_sums_cancel_exactly():
    parts = np.array([1e300, 1.0, -1e300]).reshape(3, 1)
    np.testing.assert_array_equal(exact_sums([parts]), [1.0])


@pytest.mark.parametrize("path", REDUCERS)
@pytest.mark.parametrize("of", ["rows", "deltas"])
@pytest.mark.parametrize("name", RAW)
def test_gram_of_the_whole_tensor(name, of, path):
    random = np.random.default_rng(4)
    rows = encode(random.normal(0, 0.05, (4, 3 * GRAIN + 9)), name)
    wide = decode(rows).reshape(rows.shape)
    vectors = (wide if of == "rows" else wide[1:] - wide[0]).astype(np.float64)
    dots, _ = search(Gram("dots", of), staged(rows, path, stripe=1, workers=2), {})
    np.testing.assert_allclose(dots, vectors @ vectors.T, rtol=1e-10, atol=1e-12)
    whole, _ = search(Gram("dots", of), staged(rows, path), {})
    np.testing.assert_array_equal(dots, whole)


@pytest.mark.parametrize("path", REDUCERS)
@pytest.mark.parametrize("values", [continuous, few_values, all_equal, all_zero])
def test_norms_of_the_whole_tensor(values, path):
    random = np.random.default_rng(4)
    rows = np.stack([np.zeros(3 * GRAIN + 9), *(values(random, 3 * GRAIN + 9) for _ in range(2))]).astype(np.float32)

    def halves(block, stats, model):
        return block.models[model] * np.float32(0.5)

    norms, _ = search(Norms("norms", 2, halves), staged(rows, path, stripe=1, workers=2), {})
    for found, row in zip(norms, rows[1:].astype(np.float64), strict=True):
        whole = np.array([np.abs(row).sum(), np.sqrt((row**2).sum()), np.abs(row).max()])
        np.testing.assert_allclose(found, np.stack([whole, whole / 2], axis=1), rtol=1e-12)
