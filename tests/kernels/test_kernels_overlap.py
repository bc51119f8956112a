"""Means over the models that changed an entry, counts of them, and moves by a bounded distance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, RAW, assert_rounded_sum, decode, encode

from mergekit.kernels import arrays, fused
from mergekit.kernels.overlap import TILE

SIZES = (0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 7)
STEP = 2.0**-10
THRESHOLD = 1.5 * STEP


def stack(seed, count, size, name="F32"):
    """A base and models whose deltas are a few steps, so that the threshold is never in doubt."""
    random = np.random.default_rng(seed)
    base = random.integers(-60, 60, size) * STEP
    return encode(base, name), encode(base + random.integers(-4, 5, (count, size)) * STEP, name)


def changed(base, rows, threshold=THRESHOLD):
    deltas = decode(rows).astype(np.float64) - decode(base)
    return deltas, np.abs(deltas) > threshold


@pytest.mark.parametrize("out_name", FORMATS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_means_over_the_models_that_changed_an_entry(name, out_name, size, count):
    base, rows = stack(size, count, size, name)
    factors = np.linspace(1, 1.7, count).astype(np.float32)
    out = np.full(size, 77, RAW[out_name])
    fused.overlap_mean(base, rows, factors, THRESHOLD, out)
    deltas, own = changed(base, rows)
    models = own.sum(axis=0)
    alone = (factors[:, None].astype(np.float64) * deltas * own).sum(axis=0)
    wanted = decode(base) + np.where(models > 1, (deltas * own).sum(axis=0) / np.maximum(models, 1), alone)
    assert_rounded_sum(out, wanted, np.abs(wanted) + 10 * STEP, out_name, operations=2 * count)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 4 * TILE), count=st.integers(1, 12))
def test_changes_are_counted_exactly(name, seed, size, count):
    base, rows = stack(seed, count, size, name)
    found, twin = np.full((count, 2), 77.0), np.full((count, 2), 77.0)
    fused.overlaps(base, rows, THRESHOLD, found)
    _, own = changed(base, rows)
    models = own.sum(axis=0)
    np.testing.assert_array_equal(found, np.stack([(own & (models == 1)).sum(1), (own & (models > 1)).sum(1)], axis=1))
    arrays.overlaps(torch.from_numpy(decode(base)), torch.from_numpy(decode(rows)), THRESHOLD, twin)
    np.testing.assert_array_equal(twin, found)


def test_a_change_of_just_the_threshold_is_none():
    base, rows = (
        np.zeros(3, np.float32),
        np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1)), -0.5]], np.float32),
    )
    out = np.empty(3, np.float32)
    fused.overlap_mean(base, rows, np.ones(1, np.float32), 0.5, out)
    np.testing.assert_array_equal(out, [0, rows[0, 1], 0])


def test_broken_entries_break_the_mean():
    rows = np.array([[np.nan, np.inf, -np.inf], [0, 1, np.inf]], np.float32)
    out = np.empty(3, np.float32)
    fused.overlap_mean(np.zeros(3, np.float32), rows, np.ones(2, np.float32), 1e-5, out)
    np.testing.assert_array_equal(out, [np.nan, np.inf, np.nan])


def approached(base, row, reach, out_name="F32"):
    out = np.full(base.size, 77, RAW[out_name])
    fused.approach(base, row, reach, out)
    return out


@pytest.mark.parametrize("out_name", FORMATS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reach", [0.0, 1e-7, 1e-3, 0.01, 10.0])
def test_entries_move_by_no_more_than_the_reach(name, out_name, size, reach):
    base, (row,) = stack(size, 1, size, name)
    origin, entry = decode(base).astype(np.float64), decode(row).astype(np.float64)
    share = np.clip(reach / np.maximum(np.abs(entry - origin), 1e-6), 0, 1)
    wanted = share * entry + (1 - share) * origin
    assert_rounded_sum(
        approached(base, row, reach, out_name), wanted, np.abs(origin) + 9 * STEP, out_name, operations=3
    )


def test_what_is_near_is_taken_over_bit_by_bit():
    random = np.random.default_rng(0)
    base = random.normal(0, 1, 5000).astype(np.float32)
    row = (base + random.uniform(-0.001, 0.001, 5000)).astype(np.float32)
    np.testing.assert_array_equal(approached(base, row, 0.002), row)
    np.testing.assert_array_equal(approached(base, row, 0.0), base)


def test_broken_entries_do_not_move():
    base, row = np.zeros(4, np.float32), np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    np.testing.assert_array_equal(approached(base, row, 0.25), [np.nan, np.nan, np.nan, 0.25])
