"""Blocks of every kind, read in every way."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from gguf_files import in_pairs
from hypothesis import given
from hypothesis import strategies as st

from mergekit.checkpoint import DTYPES, Blocks, Extent, Files, Kind, Stored, TensorSpec
from mergekit.checkpoint.gguf.kinds import kind_numbered
from mergekit.errors import CheckpointError
from mergekit.kernels import fused
from mergekit.plan.views import Unpacked

CODES = gguf.GGMLQuantizationType
PLAIN = ("F32", "F16", "BF16")
OLD = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
NEW = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SMALL = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0")
KINDS = (*PLAIN, *OLD, *NEW, *SMALL, "MXFP4")
UNREAD = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
ROWS, HEADS = 24, 3


class Reader:
    """Files, and buffers that are full of rubbish."""

    def __init__(self):
        self.files, self.bytes = Files(), 0

    def read(self, extent, into):
        self.bytes += extent.nbytes
        self.files.read(extent, into)

    def buffer(self, use, nbytes):
        return np.full(nbytes, 255, np.uint8)


def random_blocks(name, count, seed=0):
    """Blocks whose factors are finite: every half-precision number in them is small."""
    octets = np.random.default_rng(seed).integers(0, 256, (count, GGML_QUANT_SIZES[CODES[name]][1]), np.uint8)
    octets &= 0x3F
    return octets


def view_of(folder, name, heads=0, shift=0.0):
    size, nbytes = GGML_QUANT_SIZES[CODES[name]]
    width = max(size * 2, 32)
    octets = random_blocks(name, ROWS * width // size)
    file = Path(folder) / f"{name}.bin"
    file.write_bytes(b"head" + octets.tobytes())
    kind = Kind(name, size, nbytes)
    spec = TensorSpec("w", DTYPES["F16"], (ROWS, width))
    stored = Stored(spec, Extent(file, 4, 4 + octets.nbytes), Blocks(kind, heads, shift))
    entries = dequantize(octets.reshape(ROWS, -1), CODES[name]).astype(np.float32)
    return Unpacked.of(stored), entries


def read(view, start, stop, reader=None):
    into = np.full(stop - start, np.nan, np.float32)
    view.read(reader or Reader(), start, stop, into)
    return into


@pytest.mark.parametrize("name", KINDS)
def test_entries_are_those_of_the_library(name, tmp_path):
    view, entries = view_of(tmp_path, name)
    found = read(view, 0, entries.size)
    np.testing.assert_array_equal(found, entries.reshape(-1))
    assert np.isfinite(found).all()
    assert len(np.unique(found)) > 2


HALVES = {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where factors in half precision are in the blocks that kernels of ours unpack."""
UNUSUAL = np.array([0.0, -0.0, 2**-24, -(2**-14), 65504, -65504, np.inf, -np.inf, np.nan], "<f2")


@pytest.mark.parametrize("name", HALVES)
def test_kernels_give_the_bits_of_the_library(name):
    nbytes = GGML_QUANT_SIZES[CODES[name]][1]
    random = np.random.default_rng(1)
    alike = np.repeat(np.arange(256, dtype=np.uint8)[:, None], nbytes, 1)  # blocks of one byte only: all codes extreme
    blocks = np.concatenate([alike, random.integers(0, 256, (2048, nbytes), np.uint8)])
    for place in HALVES[name]:
        unusual = random.integers(0, 256, (8 * UNUSUAL.size, nbytes), np.uint8)
        unusual[:, place : place + 2] = np.tile(UNUSUAL, 8).view(np.uint8).reshape(-1, 2)
        blocks = np.concatenate([blocks, unusual])
    with np.errstate(all="ignore"):
        entries = dequantize(blocks, CODES[name]).reshape(-1)
    found = np.full(entries.size, 7, np.float32)
    getattr(fused, f"unpack_{name.lower()}")(blocks.reshape(-1), found)
    numbers = ~np.isnan(entries)
    np.testing.assert_array_equal(np.isnan(found), ~numbers)
    np.testing.assert_array_equal(found.view(np.uint32)[numbers], entries.view(np.uint32)[numbers])
    assert 0.8 < numbers.mean() < 1


@pytest.mark.parametrize("name", KINDS)
def test_the_kinds_and_their_sizes_are_those_of_the_library(name):
    assert kind_numbered(CODES[name].value, "w", Path("f")) == Kind(name, *GGML_QUANT_SIZES[CODES[name]])


@pytest.mark.parametrize("name", UNREAD)
def test_kinds_that_the_library_does_not_dequantise(name):
    with pytest.raises(CheckpointError, match=f"{name}, which the library `gguf` does not dequantise"):
        kind_numbered(CODES[name].value, "w", Path("f"))


@given(st.data())
def test_any_stretch_in_any_order_has_the_same_bits(tmp_path_factory, data):
    name = data.draw(st.sampled_from(("F16", "Q4_1", *HALVES, "IQ2_S")))
    heads = data.draw(st.sampled_from((0, HEADS)))
    view, _ = view_of(tmp_path_factory.getbasetemp(), name, heads, shift=data.draw(st.sampled_from((0.0, -1.0))))
    whole = read(view, 0, view.spec.count)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, view.spec.count)] * 2)))
    np.testing.assert_array_equal(read(view, start, stop), whole[start:stop])


@pytest.mark.parametrize("name", ["F32", "BF16", "Q4_0", "Q6_K"])
def test_rows_of_heads_are_put_back(name, tmp_path):
    view, entries = view_of(tmp_path, name, HEADS)
    np.testing.assert_array_equal(in_pairs(read(view, 0, entries.size).reshape(entries.shape), HEADS), entries)


def test_a_bias_is_a_row_per_entry(tmp_path):
    bias = np.arange(12, dtype="<f4")
    (tmp_path / "b").write_bytes(in_pairs(bias, 2).tobytes())
    blocks = Blocks(Kind("F32", 1, 4), heads=2)
    view = Unpacked.of(Stored(TensorSpec("b", DTYPES["F32"], (12,)), Extent(tmp_path / "b", 0, 48), blocks))
    np.testing.assert_array_equal(read(view, 0, 12), bias)
    np.testing.assert_array_equal(read(view.rows(7), 3, 7), bias[3:7])


def test_only_the_blocks_of_a_stretch_are_read(tmp_path):
    view, _ = view_of(tmp_path, "Q4_K", HEADS)
    nbytes = view.blocks.kind.nbytes
    for start, stop, blocks in ((0, 1, 1), (255, 257, 2), (512, 1024, 2), (100, 1300, 6)):
        reader = Reader()
        read(view, start, stop, reader)
        assert reader.bytes == blocks * nbytes == sum(extent.nbytes for extent in view.extents(start, stop))
    assert sum(extent.nbytes for extent in view.extents(0, view.spec.count)) == view.nbytes


def test_infinite_factors_are_no_error_until_the_output_is_checked(tmp_path):
    octets = np.full(34, 1, np.uint8)
    octets[:2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    (tmp_path / "w").write_bytes(octets.tobytes())
    blocks = Blocks(Kind("Q8_0", 32, 34))
    view = Unpacked.of(Stored(TensorSpec("w", DTYPES["F16"], (1, 32)), Extent(tmp_path / "w", 0, 34), blocks))
    assert np.isinf(read(view, 0, 32)).all()
