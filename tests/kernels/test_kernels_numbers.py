import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, RAW, decode, encode, rounded

from mergekit.kernels import RAW as NAMES
from mergekit.kernels.fused import narrow, widen

ALL = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
HALVES = ("BF16", "F16")


def widened(raw):
    out = np.empty(raw.shape, np.float32)
    widen(raw, out)
    return out


def narrowed(values, name):
    out = np.empty(values.shape, RAW[name])
    narrow(values, out)
    return out


def assert_rounds(bits, name):
    """Rounding equals the reference bit by bit; NaNs stay NaNs."""
    values = np.ascontiguousarray(bits, np.uint32).view(np.float32)
    nan = np.isnan(values)
    found = narrowed(values, name)
    np.testing.assert_array_equal(found[~nan], encode(values[~nan], name))
    assert np.isnan(decode(found[nan])).all()


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_told_apart_by_the_dtype_of_the_raw_array(name):
    assert np.dtype(NAMES[name]) == RAW[name]


@pytest.mark.parametrize("name", HALVES)
def test_every_half_precision_number_is_widened_exactly(name):
    raw = ALL.view(RAW[name])
    expected = decode(raw)
    nan = np.isnan(expected)
    found = widened(raw)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@pytest.mark.parametrize("name", HALVES)
def test_every_half_precision_number_survives_the_way_there_and_back(name):
    raw = ALL.view(RAW[name])
    values = widened(raw)
    nan = np.isnan(values)
    back = narrowed(values, name)
    np.testing.assert_array_equal(back[~nan], raw[~nan])
    assert np.isnan(decode(back[nan])).all()


def test_float32_is_copied_bit_by_bit():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 50_000, np.uint32)
    values = bits.view(np.float32)
    np.testing.assert_array_equal(widened(values).view(np.uint32), bits)
    np.testing.assert_array_equal(narrowed(values, "F32").view(np.uint32), bits)


@pytest.mark.parametrize("tail", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_bf16_rounds_around_every_number_and_every_halfway_point(tail):
    assert_rounds((np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)) | np.uint32(tail), "BF16")


@pytest.mark.parametrize("tail", [0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF])
def test_f16_rounds_around_every_float32_of_ten_bits_and_every_halfway_point(tail):
    assert_rounds((np.arange(1 << 19, dtype=np.uint32) << np.uint32(13)) | np.uint32(tail), "F16")


def test_f16_rounds_around_every_subnormal_halfway_point():
    halfway = (2 * np.arange(1 << 11) + 1) * 2.0**-25
    around = np.concatenate([halfway, np.nextafter(np.float32(halfway), 0), np.nextafter(np.float32(halfway), 1)])
    values = np.concatenate([around, -around]).astype(np.float32)
    assert_rounds(values.view(np.uint32), "F16")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(HALVES), st.integers(0, 2**32 - 1))
def test_random_bit_patterns_round_like_the_reference(name, seed):
    assert_rounds(np.random.default_rng(seed).integers(0, 1 << 32, 3000, np.uint32), name)


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("bits", [0x7F800001, 0x7F80FFFF, 0xFF800001, 0x7FC00000, 0xFFFFFFFF])
def test_a_nan_stays_a_nan_wherever_its_payload_sits(name, bits):
    assert np.isnan(decode(narrowed(np.array([bits], np.uint32).view(np.float32), name))).all()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("F16", 65504, 65504),
        ("F16", 65519.996, 65504),
        ("F16", 65520, np.inf),
        ("F16", 1e30, np.inf),
        ("F16", 2.0**-24, 2.0**-24),
        ("F16", 2.0**-25, 0),
        ("F16", np.nextafter(np.float32(2.0**-25), np.float32(1)), 2.0**-24),
        ("BF16", 3.3895314e38, 3.3895314e38),
        ("BF16", 3.4028235e38, np.inf),
        ("BF16", 2.0**-133, 2.0**-133),
        ("BF16", 2.0**-134, 0),
        ("BF16", 1.00390625, 1.0),
        ("BF16", 1.01171875, 1.015625),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_edges_of_the_formats(name, value, expected, sign):
    found = decode(narrowed(np.array([sign * value], np.float32), name))
    np.testing.assert_array_equal(found, np.array([sign * expected], np.float32))
    assert np.signbit(found[0]) == (sign < 0)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(HALVES), st.floats(width=32, allow_nan=False))
def test_rounding_picks_the_nearest_number(name, value):
    found = float(decode(narrowed(np.array([value], np.float32), name))[0])
    assert found == rounded(value, name)


def test_the_reference_rounding_agrees_with_numpy_and_torch():
    bits = np.random.default_rng(3).integers(0, 1 << 32, 200_000, np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(encode(values, "F16"), values.astype(np.float16).view(np.int16))
    bf16 = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(encode(values, "BF16"), bf16)
