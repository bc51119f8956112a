"""Tensors whose entries lie apart in their file: NumPy says what is in them."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit.checkpoint import DTYPES, Extent, Files, Stored, TensorSpec
from mergekit.checkpoint.tensors import span_of
from mergekit.plan.views import Pieces, Strided, strided, view_of

COUNT = 4000
CONTAINERS = {1: "U8", 2: "F16", 4: "F32", 8: "F64"}


class Reading:
    """Files, what was read from them, and room that is dirty."""

    def __init__(self, files):
        self.files, self.read_bytes = files, []

    def read(self, extent, into):
        self.read_bytes.append(extent.nbytes)
        self.files.read(extent, into)

    def buffer(self, use, nbytes):
        return np.full(nbytes, 0xAA, np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("strided") / "weights"
    file.write_bytes(np.random.default_rng(1).integers(0, 256, 8 * COUNT, np.uint8).tobytes())
    return file


LIMITS = {"as it is": (strided._ROOM, strided._GAP), "little room": (64, 8), "hardly any room": (8, 0)}
"""Bytes that are read at a time, and gaps that are read: small tensors meet them only if they are small."""


@contextmanager
def limited(room, gap):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided, "_ROOM", room)
        patch.setattr(strided, "_GAP", gap)
        yield


@st.composite
def stored(draw, file=None):
    size = draw(st.sampled_from(list(CONTAINERS)))
    dimensions = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 40)), min_size=1, max_size=4))
    shape, strides = zip(*dimensions, strict=True)
    start = draw(st.integers(0, 100))
    extent = Extent(file, start, start + span_of(shape, strides) * size)
    return Stored(TensorSpec("t", DTYPES[CONTAINERS[size]], shape), extent, strides=strides)


def expected(stored):
    octets = np.fromfile(stored.extent.file, np.uint8)[stored.extent.start : stored.extent.stop]
    size = stored.spec.dtype.bits // 8
    steps = [stride * size for stride in stored.strides]
    return np.lib.stride_tricks.as_strided(octets.view(f"u{size}"), stored.spec.shape, steps).reshape(-1)


@pytest.mark.parametrize("limits", LIMITS)
@settings(deadline=None)
@given(data=st.data())
def test_any_stretch_of_any_tensor(data, file, limits):
    tensor = data.draw(stored(file))
    view = view_of(tensor)
    assert isinstance(view, Strided)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, tensor.spec.count)] * 2)))
    with Files() as files, limited(*LIMITS[limits]):
        reading = Reading(files)
        found = np.empty((stop - start) * tensor.spec.dtype.bits // 8, np.uint8)
        view.read_bytes(reading, start, stop, found)
    whole = expected(tensor)
    assert found.tobytes() == whole[start:stop].tobytes()
    assert max(reading.read_bytes, default=0) <= LIMITS[limits][0]


@settings(deadline=None)
@given(data=st.data())
def test_extents_enclose_what_is_read(data, file):
    tensor = data.draw(stored(file))
    view = Strided.of(tensor)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, tensor.spec.count)] * 2)))
    extents = list(view.extents(start, stop))
    assert len(extents) == (start < stop)
    size = tensor.spec.dtype.bits // 8
    for extent in extents:
        steps = [stride * size for stride in tensor.strides]
        place = np.lib.stride_tricks.as_strided(np.arange(8 * COUNT), tensor.spec.shape, [8 * step for step in steps])
        places = tensor.extent.start + place.reshape(-1)[start:stop]
        assert (extent.start, extent.stop) == (places.min(), places.max() + size)


def test_the_first_rows(file):
    tensor = Stored(TensorSpec("t", DTYPES["F32"], (6, 5)), Extent(file, 8, 8 + 120), strides=(1, 6))
    view = Strided.of(tensor).rows(2)
    assert view.spec.shape == (2, 5)
    assert view.nbytes == 40
    found = np.empty(40, np.uint8)
    with Files() as files:
        view.read_bytes(Reading(files), 0, 10, found)
    assert found.tobytes() == expected(tensor)[:10].tobytes()


def test_entries_are_widened_as_those_of_other_tensors(file):
    spec = TensorSpec("t", DTYPES["F16"], (10, 7))
    wide = np.empty(70, np.float32)
    tensor = Stored(spec, Extent(file, 0, 140), strides=(1, 10))
    with Files() as files, np.errstate(invalid="ignore"):
        view_of(tensor).read(Reading(files), 0, 70, wide)
    np.testing.assert_array_equal(wide, expected(tensor).view(np.float16).astype(np.float32))


def test_a_row_of_a_transposed_matrix_skips_what_is_far_and_reads_what_is_near(file):
    def read(columns, high, rows):
        spec = TensorSpec("t", DTYPES["U8"], (rows, columns))
        tensor = Strided(spec, Extent(file, 0, 8 * COUNT), (1, high), ("t",))
        with Files() as files:
            reading = Reading(files)
            tensor.read_bytes(reading, 0, rows * columns, np.empty(rows * columns, np.uint8))
        return reading.read_bytes

    assert read(20, 1000, 3) == [19 * 1000 + 3]
    with limited(1 << 20, 500):
        assert read(20, 1000, 3) == [3] * 20
    with limited(5000, 1000):
        assert read(20, 1000, 3) == [4003] * 4


def test_a_tensor_in_order_is_one_piece(file):
    tensor = Stored(TensorSpec("t", DTYPES["F32"], (3, 4)), Extent(file, 0, 48))
    assert view_of(tensor) == Pieces.of(tensor)
