"""`Kth` finds exactly the entries that a stable sort puts first, `Gram` and `Mass` exactly rounded sums."""

import math

import numpy as np
import pytest
from driver import PATHS, Stage, search
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import RAW, decode, encode

from mergekit.kernels import GRAIN
from mergekit.methods.reductions import Gram, Kth, Mass, exact_sums

MOST_SWEEPS = 6
REDUCERS = [path for path in PATHS if path != "default"]


def magnitudes(rows):
    """Magnitudes of the deltas, in float32 as methods see them."""
    wide = decode(rows).reshape(rows.shape)
    return np.abs(wide[1:] - wide[0])


def kept_entries(cut, magnitude):
    bits = magnitude.view(np.uint32)
    return (bits > cut.bits[0]) | ((bits == cut.bits[0]) & (np.arange(bits.size) <= cut.edges[0]))


def assert_kept(cut, magnitude, density):
    """The cut keeps what a stable sort of all magnitudes puts first."""
    kept = kept_entries(cut, magnitude)
    wanted = max(1, int(density * magnitude.size))
    first = np.argsort(-magnitude.astype(np.float64), kind="stable")[:wanted]
    if cut.bits[0] == 0:
        np.testing.assert_array_equal(kept | (magnitude == 0), np.ones(magnitude.size, bool))
        assert (magnitude[first] == 0).any()
    else:
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(first))


def found_cut(rows, density, **staging):
    cut, sweeps = search(Kth("cut", keep=(density,)), Stage(rows, True, **staging), {})
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
    cut = found_cut(rows, density, stripe=stripe, workers=1 + seed % 3, sampling=(4, 64))
    assert_kept(cut, magnitudes(rows)[0], density)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["BF16", "F16"]), st.integers(1, 20_000), densities, st.integers(0, 10**6))
def test_deltas_of_half_precision_tie_often_and_are_cut_exactly(name, size, density, seed):
    random = np.random.default_rng(seed)
    base = random.normal(0, 0.05, size)
    rows = encode(np.stack([base, base + random.normal(0, 0.002, size)]), name)
    cut = found_cut(rows, density, stripe=1, workers=2, sampling=(4, 64))
    assert_kept(cut, magnitudes(rows)[0], density)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("density", [1e-4, 0.3, 0.999])
def test_large_tensors(values, density):
    rows = np.zeros((2, 200_000), np.float32)
    rows[1] = values(np.random.default_rng(5), rows.shape[1])
    assert_kept(found_cut(rows, density, stripe=4, workers=2), magnitudes(rows)[0], density)


def periodic(size, chunks, length, inside, outside):
    """Entries that the sample sees, and others."""
    row = np.full(size, outside, np.float64)
    for index in range(chunks):
        start = index * (size - length) // (chunks - 1)
        row[start : start + length] = inside
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
    cut = found_cut(rows, density, stripe=1, workers=2, sampling=(8, 256))
    assert_kept(cut, magnitudes(rows)[0], density)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(VALUES), st.sampled_from(VALUES), densities, st.integers(0, 10**6))
def test_a_sample_of_another_tensor_altogether(values, others, density, seed):
    random = np.random.default_rng(seed)
    rows, strange = np.zeros((2, 9000), np.float32), np.zeros((2, 300), np.float32)
    rows[1], strange[1] = values(random, 9000), others(random, 300)
    stage = Stage(rows, True, stripe=1)
    kth = Kth("cut", keep=(density,))

    class Misled:
        name = "cut"

        def begin(self, entries, sample, stats):
            return kth.begin(entries, lambda: stage.block(strange, 0), stats)

    cut, sweeps = search(Misled(), stage, {})
    assert sweeps <= MOST_SWEEPS
    assert_kept(cut, magnitudes(rows)[0], density)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(VALUES), st.integers(1, 12_000), st.lists(densities, min_size=3, max_size=3), st.integers(0, 99))
def test_all_reducers_find_the_same_cuts(values, size, keep, seed):
    random = np.random.default_rng(seed)
    rows = np.stack([np.zeros(size), *(values(random, size) for _ in keep)]).astype(np.float32)
    cuts = [search(Kth("cut", keep=tuple(keep)), Stage(rows, True, path, 1), {})[0] for path in REDUCERS]
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
        {"stripe": 3, "sampling": (2, 8)},
        {"stripe": 2, "sampling": (1, size)},
    ]
    kept = [kept_entries(found_cut(rows, density, **staging), magnitudes(rows)[0]) for staging in stagings]
    for entries in kept[1:]:
        np.testing.assert_array_equal(entries, kept[0])


@pytest.mark.parametrize(("density", "kept"), [(0, 0), (-1, 0), (1, 5), (1.5, 5), (1e-9, 1), (0.39, 1), (0.4, 2)])
def test_how_many_entries_a_density_keeps(density, kept):
    rows = np.array([[0, 0, 0, 0, 0], [1, -3, 2, 3, -1]], np.float32)
    cut, _ = search(Kth("cut", keep=(density,)), Stage(rows, True), {})
    assert kept_entries(cut, magnitudes(rows)[0]).sum() == kept


def test_nothing_is_read_where_nothing_is_trimmed():
    rows = np.ones((3, 9000), np.float32)
    _, sweeps = search(Kth("cut", keep=(1.0, 0.0)), Stage(rows, True), {})
    assert sweeps == 0


def test_a_good_sample_saves_sweeps():
    rows = np.zeros((4, 200_000), np.float32)
    rows[1:] = np.random.default_rng(0).normal(0, 0.01, (3, 200_000))
    sampled = Stage(rows, True, stripe=8, sampling=(32, 1024))
    guessed = Stage(rows, True, stripe=8, sampling=(2, 1))
    kth = Kth("cut", keep=(0.2, 0.5, 0.8))
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
    dots, _ = search(Gram("dots", of), Stage(rows, True, path, 1, workers=2), {})
    np.testing.assert_allclose(dots, vectors @ vectors.T, rtol=1e-10, atol=1e-12)
    whole, _ = search(Gram("dots", of), Stage(rows, True, path), {})
    np.testing.assert_array_equal(dots, whole)


@pytest.mark.parametrize("path", REDUCERS)
@pytest.mark.parametrize("keep", [(0.3, 1.0), (0.0, 0.7)])
@pytest.mark.parametrize("values", [continuous, few_values, all_equal, all_zero])
def test_masses_of_the_whole_tensor(values, keep, path):
    random = np.random.default_rng(4)
    rows = np.stack([np.zeros(3 * GRAIN + 9), *(values(random, 3 * GRAIN + 9) for _ in keep)]).astype(np.float32)
    stage = Stage(rows, True, path, 1, workers=2)
    cut, _ = search(Kth("cut", keep=keep), stage, {})
    mass, _ = search(Mass("mass", cut="cut"), stage, {"cut": cut})
    for (whole, kept), magnitude, density in zip(mass, magnitudes(rows), keep, strict=True):
        wanted = max(1, int(density * magnitude.size)) if density else 0
        assert whole == pytest.approx(magnitude.sum(dtype=np.float64), rel=1e-12)
        greatest = np.sort(magnitude)[magnitude.size - wanted :]
        assert kept == pytest.approx(greatest.sum(dtype=np.float64), rel=1e-12)
