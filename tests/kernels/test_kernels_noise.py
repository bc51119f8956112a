"""Noise is even, independent, the same everywhere, and a function of (seed, tensor, model, entry) alone."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit.kernels import arrays, fused
from mergekit.kernels.streams import BITS, stream_keys, threshold

SIZE = 1 << 18
STREAMS = [(0, "a.weight", 0), (0, "a.weight", 1), (0, "b.weight", 0), (1, "a.weight", 0), (10, "a.weight", 0)]


def drawn(stream, size=SIZE, start=0):
    out = np.empty(size, np.uint32)
    fused.noise(start, stream_keys(*stream), out)
    return out


def standardised(stream, size=SIZE, start=0):
    """Noise with mean 0 and variance 1."""
    return (drawn(stream, size, start) / 2.0**BITS - 0.5) * math.sqrt(12)


@pytest.mark.parametrize("stream", STREAMS)
def test_noise_is_even(stream):
    noise = drawn(stream)
    assert noise.max() < 1 << BITS
    for bins in (2, 10, 1024):
        counts = np.bincount((noise.astype(np.int64) * bins) >> BITS, minlength=bins)
        chi = ((counts - SIZE / bins) ** 2).sum() * bins / SIZE
        assert abs(chi - (bins - 1)) < 5 * math.sqrt(2 * bins), bins
    bits = (noise[:, None] >> np.arange(BITS, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(SIZE)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("lag", [1, 2, 3, 64, 896, 4096, 65536])
def test_entries_do_not_depend_on_each_other(stream, lag):
    noise = standardised(stream)
    assert abs((noise[:-lag] * noise[lag:]).mean()) < 5 / math.sqrt(SIZE)
    bits = drawn(stream).view(np.int32)
    same = ~(bits[:-lag] ^ bits[lag:])
    shares = ((same[:, None] >> np.arange(BITS)) & 1).mean(axis=0)
    assert np.abs(shares - 0.5).max() < 5 * 0.5 / math.sqrt(SIZE - lag)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(STREAMS, 2)))
def test_streams_are_independent(one, other):
    first, second = standardised(one), standardised(other)
    assert abs((first * second).mean()) < 5 / math.sqrt(SIZE)
    assert np.intersect1d(drawn(one)[:4096], drawn(other)[:4096]).size < 20
    table = np.histogram2d(first, second, bins=16)[0]
    chi = ((table - SIZE / 256) ** 2).sum() * 256 / SIZE
    assert abs(chi - 255) < 5 * math.sqrt(2 * 255)


def test_streams_are_no_shifted_copies():
    first, second = drawn(STREAMS[0]), drawn(STREAMS[1])
    common = np.intersect1d(first, second, assume_unique=False)
    expected = SIZE * SIZE / 2.0**BITS
    assert common.size < expected + 5 * math.sqrt(expected)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([0, 5, 4096, 2**31 - 100, 2**32 - 700, 3 * 2**32 - 1]), st.integers(0, 3000), st.integers(0, 999)
)
def test_all_libraries_draw_the_same_bits(start, size, seed):
    keys = stream_keys(seed, "w", 0)
    kernel = drawn((seed, "w", 0), size, start)
    np.testing.assert_array_equal(arrays.noise(np.empty(size, np.float32), start, keys), kernel)
    np.testing.assert_array_equal(arrays.noise(torch.empty(size), start, keys).numpy(), kernel)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([0, 2**32 - 1000, 2**33 - 3]), st.integers(1, 2000), st.integers(1, 2000))
def test_noise_does_not_depend_on_where_a_block_begins(start, head, tail):
    whole = drawn(STREAMS[0], head + tail, start)
    parts = [drawn(STREAMS[0], head, start), drawn(STREAMS[0], tail, start + head)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_upper_half_of_an_index_counts():
    assert (drawn(STREAMS[0], 1000, 0) == drawn(STREAMS[0], 1000, 2**32)).sum() < 3


def test_the_stream_of_a_seed_does_not_change_between_versions():
    assert stream_keys(0, "model.norm.weight", 1).tolist() == [1448971897, 2008929600, 2400949261]
    assert drawn((0, "model.norm.weight", 1), 3).tolist() == [629995122, 394902845, 286233567]


@pytest.mark.parametrize("probability", [0, 1e-9, 0.1, 0.5, 0.9, 1])
def test_noise_below_the_threshold_has_the_probability(probability):
    kept = (drawn(STREAMS[2]) < threshold(probability)).mean()
    assert abs(kept - probability) <= 5 * math.sqrt(probability * (1 - probability) / SIZE) + 1e-9
