"""Order statistics that start from a sample: exact, whatever the sample says."""

from dataclasses import dataclass

import numpy as np
import pytest
from driver import Stage, search
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit.kernels import GRAIN
from mergekit.methods import Target
from mergekit.methods.surveys import Seen, Survey, Surveyed, SurveyedKth, Tally

SIZE = 70 * GRAIN + 123  # more than a survey keeps


@dataclass(frozen=True)
class Distance(Surveyed):
    """Magnitude of the delta of the first model."""

    def of(self, block):
        return np.abs(np.asarray(block.models[0]) - np.asarray(block.base))


def stage_of(scores, stripe=5, workers=2, path="fused"):
    rows = np.stack([np.zeros_like(scores), scores])
    return Stage(rows, True, Target("tensor", scores.shape), path, stripe, workers)


def counted(block, picked):
    return np.array([block.rows.shape[1]]), Distance().of(block)[picked]


SURVEY = Survey("seen", counted, fold=lambda counts: np.sum(counts, axis=0))


def cuts(scores, keeps, seen=None, edges=True, **how):
    """The cuts and the number of sweeps after the survey."""
    stage = stage_of(scores, **how)
    stats = {"seen": seen or search(SURVEY, stage, {})[0]}
    return search(SurveyedKth("cut", "seen", lambda _: Distance(), lambda *_: keeps, edges), stage, stats)


def check(scores, keeps, **how):
    """Exactly `keep` entries are kept, and they are those that a stable sort puts first."""
    cut, sweeps = cuts(scores, keeps, **how)
    order = np.argsort(-scores, kind="stable")
    for keep, bits, edge in zip(keeps, cut.bits[:, 0], cut.edges[:, 0], strict=True):
        own = scores.view(np.uint32)
        kept = (own > bits) | ((own == bits) & (np.arange(scores.size) <= edge))
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(order[:keep]))
    return sweeps


def numbers(seed, size=SIZE, values=None):
    random = np.random.default_rng(seed)
    drawn = np.abs(random.normal(0, 1, size)) + 0.1
    return (np.ceil(drawn * values) / values if values else drawn).astype(np.float32)


def test_a_survey_folds_and_samples_at_equal_distances():
    scores = numbers(0)
    seen = {(s, w): search(SURVEY, stage_of(scores, s, w), {})[0] for s, w in [(None, 1), (1, 3), (7, 2)]}
    for each in seen.values():
        assert each.found == [SIZE]
        np.testing.assert_array_equal(each.sample, scores[:: SIZE // (1 << 16)])


def test_a_survey_of_a_small_tensor_keeps_everything():
    scores = numbers(1, 5000)
    np.testing.assert_array_equal(search(SURVEY, stage_of(scores), {})[0].sample, scores)


def test_a_survey_of_nothing():
    found, sweeps = search(SURVEY, stage_of(np.empty(0, np.float32)), {})
    assert (found.found.tolist(), found.sample.size, sweeps) == ([0], 0, 0)


@pytest.mark.parametrize("path", ["fused", "numpy", "torch"])
@pytest.mark.parametrize("size", [1, 2, 5000, SIZE])
def test_distinct_scores_take_one_sweep_or_none_if_all_were_seen(size, path):
    scores = numbers(size, size)
    keeps = sorted({1, max(1, size // 3), max(1, size // 2), max(1, size - 1), size})
    assert check(scores, keeps, path=path) == (size == SIZE)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 3 * GRAIN),
    values=st.sampled_from([None, 1, 3, 50]),
    data=st.data(),
)
def test_any_scores_and_ranks(seed, size, values, data):
    keeps = data.draw(st.lists(st.integers(1, size), min_size=1, max_size=3))
    check(numbers(seed, size, values), keeps, stripe=1)


@pytest.mark.parametrize("values", [1, 2, 8, 100])
def test_scores_that_are_few_values_many_times_each(values):
    scores = numbers(values, values=values)
    check(scores, [SIZE // 7, SIZE // 2])


@pytest.mark.parametrize("misled", [0.01, 100.0])
def test_a_sample_that_misleads_costs_sweeps_and_no_exactness(misled):
    scores = numbers(5)
    sample = np.float32(misled) * scores[::8].copy()
    sweeps = check(scores, [SIZE // 4, SIZE // 2], seen=Seen(np.array([SIZE]), sample))
    assert sweeps > 1


@pytest.mark.parametrize("keep", [0, -3])
def test_nothing_is_kept_without_a_sweep(keep):
    cut, sweeps = cuts(numbers(6), [keep])
    assert (cut.bits[0, 0], sweeps) == (0xFFFFFFFF, 0)


@pytest.mark.parametrize("size", [1, 3, 5000])
def test_the_least_score_is_found_too(size):
    scores = numbers(7, size)
    cut, _ = cuts(scores, [size], edges=False)
    assert cut.bits[0, 0] == scores.min().view(np.uint32)


@pytest.mark.parametrize("values", [None, 5])
def test_scores_without_edges(values):
    scores, keeps = numbers(9, values=values), [SIZE // 5, SIZE // 2, SIZE - 7]
    cut, _ = cuts(scores, keeps, edges=False)
    np.testing.assert_array_equal(cut.bits[:, 0].view(np.float32), np.sort(scores)[[SIZE - keep for keep in keeps]])


def test_a_tally_is_the_sum_over_all_blocks():
    scores = numbers(8)
    for stripe, workers in [(None, 1), (1, 2)]:
        tally = Tally("sum", lambda block, stats: stats["factor"] * np.array([[np.count_nonzero(block.models > 1)]]))
        total, _ = search(tally, stage_of(scores, stripe, workers), {"factor": 2.0})
        assert total == [2 * np.count_nonzero(scores > 1)]
