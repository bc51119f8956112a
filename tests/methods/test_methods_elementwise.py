"""The corners of methods that look at each entry: NearSwap, RAM, SCE, Arcee fusion."""

import numpy as np
import pytest
from driver import PATHS, Stage, run_method, search
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, decode, encode
from papers import PAPERS

from mergekit.kernels import GRAIN
from mergekit.methods import Target
from mergekit.methods.arcee_fusion import ArceeFusion, threshold
from mergekit.methods.nearswap import NearSwap
from mergekit.methods.ram import Ram
from mergekit.methods.ramplus_tl import RamPlusTL
from mergekit.methods.sce import Sce

every_path = pytest.mark.parametrize("path", PATHS)


def floats(*values):
    return np.array(values, np.float32)


def near(seed, shape, count, name="F32", step=2.0**-18, spread=0.003):
    """A base and models near it, raw; differences are exact."""
    random = np.random.default_rng(seed)

    def grid(values):
        return encode(np.rint(values / step) * step, name)

    base = grid(random.normal(0, 0.05, shape))
    origin = decode(base).reshape(shape).astype(np.float64)
    return base, [grid(origin + random.normal(0, spread, shape) * (random.random(shape) > 0.2)) for _ in range(count)]


def of_paper(method, base, models):
    wide = [decode(each).reshape(each.shape).astype(np.float64) for each in (base, *models)]
    parameters = {each.name: getattr(method, each.field) for each in method.parameters()}
    return PAPERS[method.name](wide[0], wide[1:], parameters)


def merged(method, base, *models, path="fused", **how):
    return run_method(method, base, models, "F32", path=path, **how)


# NearSwap


@every_path
@pytest.mark.parametrize(("t", "found"), [(0.0, [0, 0, 0]), (0.25, [0.125, 0.25, -0.25]), (2.0, [0.125, 0.5, -1])])
def test_nearswap_moves_by_no_more_than_t(t, found, path):
    np.testing.assert_array_equal(merged(NearSwap(t=t), floats(0, 0, 0), floats(0.125, 0.5, -1), path=path), found)


@every_path
def test_nearswap_takes_tiny_distances_for_a_millionth(path):
    found = merged(NearSwap(t=5e-7), floats(0, 0), floats(1e-8, 1e-7), path=path)
    np.testing.assert_allclose(found, [5e-9, 5e-8], rtol=1e-5)


# RAM


@every_path
def test_ram_averages_only_over_the_models_that_changed_an_entry(path):
    base, one, two, three = floats(1, 1, 1, 1), floats(2, 2, 1, 1.25), floats(4, 1, 1, 0.75), floats(1, 1, 1, 1.25)
    found = merged(Ram(epsilon=0.1), base, one, two, three, path=path)
    np.testing.assert_allclose(found, [3, 2, 1, 1 + 0.25 / 3], rtol=1e-7)


@every_path
def test_ram_leaves_out_small_changes_even_of_a_single_model(path):
    np.testing.assert_array_equal(merged(Ram(epsilon=0.5), floats(0, 0), floats(0.5, 0.75), path=path), [0, 0.75])


@every_path
@pytest.mark.parametrize("count", [1, 2, 5])
def test_ram_at_common_thresholds(count, path):
    base, models = near(count, (37, 811), count)
    method = Ram(epsilon=0.0025)
    wanted = of_paper(method, base, models)
    assert np.abs(merged(method, base, *models, path=path) - wanted).max() <= 1e-6 * np.abs(wanted).max()


@every_path
@pytest.mark.parametrize("alpha", [0.0, 0.3, 5.0])
def test_ramplus_strengthens_by_exact_counts(alpha, path):
    base, models = near(1, (37, 811), 3)
    method = RamPlusTL(r=0.5, alpha=alpha, epsilon=0.003)
    wanted = of_paper(method, base, models)
    found = merged(method, base, *models, path=path, stripe=2, workers=2)
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_ramplus_without_strengthening_is_ram():
    base, models = near(2, 30000, 3)
    found = merged(RamPlusTL(r=0.0, alpha=0.2, epsilon=0.002), base, *models)
    np.testing.assert_array_equal(found, merged(Ram(epsilon=0.002), base, *models))


@pytest.mark.parametrize(("counts", "factor"), [((0, 0), 1.0), ((0, 9), 1.2), ((100, 10), 1.1), ((10, 100), 1.2)])
def test_ramplus_factor(counts, factor):
    found = RamPlusTL(r=1.0, alpha=0.2, epsilon=1e-5).factors({"overlaps": np.array([counts], np.float64)}, 1)
    assert found == pytest.approx((factor,), rel=1e-12)


# SCE


@every_path
def test_sce_of_one_model_selects_nothing_unless_all_is_selected(path):
    base, (model,) = near(1, 5000, 1)
    np.testing.assert_array_equal(merged(Sce(select_topk=0.99), base, model, path=path), base)
    np.testing.assert_allclose(merged(Sce(select_topk=1.0), base, model, path=path), model, atol=1e-7)


@every_path
@pytest.mark.parametrize("select_topk", [0.0, 0.001])
def test_sce_that_selects_nothing_gives_the_base(select_topk, path):
    base, models = near(2, 500, 3)
    np.testing.assert_array_equal(merged(Sce(select_topk=select_topk), base, *models, path=path), base)


@every_path
def test_sce_counts_only_entries_that_differ(path):
    """Where both models move alike, there is nothing to select: half of 4 entries is 2."""
    one, two = floats(1, 1, 5, 5, 1, 2, 3, 4), floats(1, 1, 5, 5, 2, 4, 6, 8)
    found = merged(Sce(select_topk=0.5), np.zeros(8, np.float32), one, two, path=path)
    np.testing.assert_array_equal(found != 0, [0, 0, 0, 0, 0, 0, 1, 1])


@every_path
def test_sce_keeps_ties_of_lowest_index(path):
    size = 3 * GRAIN + 5
    one, two = np.ones(size, np.float32), np.full(size, 2, np.float32)
    for kept in (1, GRAIN, GRAIN + 1, size - 1):
        found = merged(Sce(select_topk=(kept + 0.5) / size), np.zeros(size, np.float32), one, two, path=path, stripe=1)
        np.testing.assert_array_equal(found != 0, np.arange(size) < kept)


@every_path
@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**-40])
def test_sce_weighs_models_however_small_the_deltas_are(scale, path):
    """Weights 1/5 and 4/5; the peer weighs deltas of a mean square below 1e-6 equally."""
    deltas = np.full((2, 100), scale, np.float32)
    deltas[1] *= 2
    found = merged(Sce(select_topk=1.0), np.zeros(100, np.float32), *deltas, path=path)
    np.testing.assert_allclose(found, 1.8 * scale, rtol=1e-6)


@every_path
def test_sce_erases_the_minority(path):
    found = merged(Sce(select_topk=1.0), floats(0, 0, 0), floats(3, -3, 2), floats(-1, 1, 2), path=path)
    np.testing.assert_allclose(found, [3, -3, 2], rtol=1e-6)


@every_path
def test_sce_of_votes_that_cancel_counts_as_plus(path):
    np.testing.assert_allclose(merged(Sce(select_topk=1.0), floats(0, 0), floats(1, -1), floats(-1, 1), path=path), 1)


@every_path
def test_sce_of_models_equal_to_the_base_is_the_base(path):
    base, _ = near(3, 1000, 1)
    np.testing.assert_array_equal(merged(Sce(select_topk=1.0), base, base, base, path=path), base)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 4),
    select_topk=st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999]),
    step=st.sampled_from([2.0**-9, 2.0**-18]),
)
def test_sce_selects_exactly(name, seed, count, select_topk, step):
    base, models = near(seed, (23, 911), count, name, step)
    method = Sce(select_topk=select_topk)
    found = run_method(method, base, models, name, 1, out_format="F32", workers=2)
    wanted = of_paper(method, base, models)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("select_topk", [0.5, 1.0])
def test_sce_breaks_where_an_input_is_broken(select_topk, broken):
    base, models = near(3, 1000, 2)
    models[0][7] = broken
    assert not np.isfinite(merged(Sce(select_topk=select_topk), base, *models)[7])


@pytest.mark.parametrize(("place", "broken"), [(0, np.nan), (0, np.inf), (1, np.nan), (1, np.inf), (1, -np.inf)])
def test_arcee_fusion_breaks_where_an_input_is_broken(place, broken):
    """A broken row is as it is in the base but for the broken entry, and does not touch others."""
    base, (model,) = near(3, (20, 300), 1)
    whole = merged(ArceeFusion(), base, model)
    (base, model)[place][4, 7] = broken
    found = merged(ArceeFusion(), base, model)
    assert not np.isfinite(found[4, 7])
    assert np.isfinite(np.delete(found.reshape(-1), 4 * 300 + 7)).all()
    assert (found == whole).mean() > 0.9


# Arcee fusion


@every_path
def test_arcee_fusion_of_single_entries_takes_the_model(path):
    """A distribution over one entry never differs: all importances are 0, and so is the threshold."""
    for shape in ((), (7, 1)):
        base, (model,) = near(1, shape, 1)
        np.testing.assert_array_equal(merged(ArceeFusion(), base, model, path=path), model)


@every_path
@pytest.mark.parametrize("shape", [(2,), (3,), (2, 2), (1, 5), (400, 3), (3, 5000), (2, 3, 700), (30, 41, 4)])
def test_arcee_fusion_of_many_shapes(shape, path):
    base, (model,) = near(5, shape, 1)
    wanted = of_paper(ArceeFusion(), base, [model])
    np.testing.assert_array_equal(merged(ArceeFusion(), base, model, path=path, stripe=1, workers=2), wanted)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 60),
    width=st.integers(1, 700),
    step=st.sampled_from([2.0**-9, 2.0**-18]),
)
def test_arcee_fusion_takes_just_what_is_important(name, seed, rows, width, step):
    base, (model,) = near(seed, (rows, width), 1, name, step)
    found = run_method(ArceeFusion(), base, [model], name, 2, workers=2)
    wanted = encode(of_paper(ArceeFusion(), base, [model]), name)
    np.testing.assert_array_equal(found, wanted)


def test_arcee_fusion_has_exact_quartiles_of_large_tensors():
    """More entries than a survey keeps in its sample."""
    shape = (300, 1000)
    base, (model,) = near(6, shape, 1, "BF16")
    method = ArceeFusion()
    rows = np.stack([base.reshape(-1), model.reshape(-1)])
    stage = Stage(rows, True, Target("tensor", shape, method.grain(shape)), stripe=7, workers=2)
    stats = {}
    for reduction in method.reductions():
        stats[reduction.name], _ = search(reduction, stage, stats)
    distances = np.abs(decode(model) - decode(base)).reshape(shape).astype(np.float64)
    importance = np.sort((distances * stats["rows"].found[:, None]).astype(np.float32), axis=None)
    places = [int(quarter * (importance.size - 1)) for quarter in (0.25, 0.5, 0.75)]
    np.testing.assert_array_equal(stats["quartiles"].bits.view(np.float32)[:, 0], importance[places])


@every_path
def test_arcee_fusion_takes_an_importance_that_equals_the_threshold(path):
    """Steps 0, 1, 2, 3, 4, 5 … of one row: with quartiles 1, 2 and 3 the threshold is 5 steps."""
    steps = np.array([0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 1, 2, 3, 2, 6, 2, 1, 0, 2, 2, 3])
    for scale in (2.0**-7, 0.001, 0.0007, 1.3e-5):
        model = np.float32(scale) * steps.astype(np.float32)
        quartiles = np.sort(steps)[[5, 10, 15]]
        least = quartiles[1] + 1.5 * (quartiles[2] - quartiles[0])
        assert least in steps
        found = merged(ArceeFusion(), np.zeros(21, np.float32), model, path=path)
        np.testing.assert_array_equal(found != 0, (steps >= least) & (steps > 0))


def test_arcee_fusion_threshold():
    assert threshold(floats(1, 2, 4)[:, None]) == pytest.approx(6.5, rel=2e-6)
    assert threshold(floats(0, 0, 0)[:, None]) == 0
