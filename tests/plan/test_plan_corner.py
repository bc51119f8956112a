"""Corners of tensors: whatever a tensor is, NumPy's slices say what is in its corner."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit.checkpoint import DTYPES, Extent, Files, Stored, TensorSpec
from mergekit.plan.views import Corner, Joined, Pieces, Shifted, Strided, corner, strided, view_of

COUNT = 6000


class Reading:
    """Files, what was read from them, and room that is dirty."""

    def __init__(self, files):
        self.files, self.extents = files, []

    def read(self, extent, into):
        self.extents.append(extent)
        self.files.read(extent, into)

    def buffer(self, use, nbytes):
        return np.full(nbytes, 0xAA, np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("corner") / "weights"
    file.write_bytes(np.random.default_rng(3).standard_normal(COUNT).astype("<f4").tobytes())
    return file


def entries(file):
    return np.fromfile(file, "<f4")


def stored(file, shape, first=0):
    start = 4 * first
    return Stored(TensorSpec("t", DTYPES["F32"], shape), Extent(file, start, start + 4 * math.prod(shape)))


def in_one_piece(file, shape):
    whole = entries(file)[: math.prod(shape)].reshape(shape)
    return view_of(stored(file, shape)), whole


def transposed(file, shape):
    whole = entries(file)[: math.prod(shape)].reshape(shape[::-1]).T
    plain = stored(file, shape)
    strides = tuple(step // 4 for step in whole.strides)
    return view_of(Stored(plain.spec, plain.extent, strides=strides)), whole


def in_pieces(file, shape):
    """Its rows stand in the file from last to first."""
    row = math.prod(shape[1:])
    whole = entries(file)[: math.prod(shape)].reshape(shape)[::-1]
    pieces = tuple(stored(file, shape[1:], row * index).extent for index in reversed(range(shape[0])))
    return Pieces(TensorSpec("t", DTYPES["F32"], shape), pieces, ("t",)), whole


def computed(file, shape):
    whole, count = entries(file), math.prod(shape)
    base, offset = stored(file, shape), stored(file, shape, count)
    sums = whole[:count] + np.float32(0.5) * whole[count : 2 * count]
    return Shifted(view_of(base), view_of(offset), 0.5), sums.reshape(shape)


def joined(file, shape):
    row = math.prod(shape[1:])
    views = tuple(view_of(stored(file, shape[1:], row * index)) for index in range(shape[0]))
    return Joined(TensorSpec("t", DTYPES["F32"], shape), views, ("t",)), entries(file)[: math.prod(shape)].reshape(
        shape
    )


@st.composite
def cuts(draw):
    """A shape, and a shape within it."""
    whole = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    return tuple(whole), tuple(draw(st.integers(0, size)) for size in whole)


@pytest.mark.parametrize("make", [in_one_piece, transposed, in_pieces, computed, joined])
@settings(deadline=None)
@given(cut=cuts(), data=st.data())
def test_any_stretch_of_any_corner(make, cut, data, file):
    shape, small = cut
    view, whole = make(file, shape)
    found = corner(view, small)
    assert found.spec.shape == small
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, math.prod(small))] * 2)))
    into = np.full(stop - start, np.nan, np.float32)
    with Files() as files:
        found.read(Reading(files), start, stop, into)
    expected = whole[tuple(slice(size) for size in small)].reshape(-1)[start:stop]
    np.testing.assert_array_equal(into, expected)


@pytest.mark.parametrize("make", [in_one_piece, transposed, in_pieces, computed, joined])
@settings(deadline=None)
@given(cut=cuts(), data=st.data())
def test_extents_enclose_what_is_read(make, cut, data, file):
    shape, small = cut
    found = corner(make(file, shape)[0], small)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, math.prod(small))] * 2)))
    with Files() as files:
        reading = Reading(files)
        found.read(reading, start, stop, np.empty(stop - start, np.float32))
    told = {byte for extent in found.extents(start, stop) for byte in range(extent.start, extent.stop)}
    assert {byte for extent in reading.extents for byte in range(extent.start, extent.stop)} <= told


def test_the_whole_is_its_own_corner(file):
    view, _ = in_one_piece(file, (4, 6))
    assert corner(view, (4, 6)) is view


def test_leading_rows_of_what_is_in_one_piece_are_one_piece(file):
    view, _ = in_one_piece(file, (4, 6))
    found = corner(view, (3, 6))
    assert isinstance(found, Pieces)
    assert [(extent.start, extent.stop) for extent in found.extents(0, 18)] == [(0, 72)]


def test_only_what_is_needed_is_read(file, monkeypatch):
    """Rows that lie far apart are read one by one; the gaps between them are not read."""
    monkeypatch.setattr(strided, "_GAP", 8)
    for make, kind in ((in_one_piece, Strided), (in_pieces, Corner)):
        view, _ = make(file, (10, 40))
        found = corner(view, (3, 5))
        assert isinstance(found, kind)
        assert found.nbytes == 3 * 5 * 4
        with Files() as files:
            reading = Reading(files)
            found.read(reading, 0, 15, np.empty(15, np.float32))
        assert [extent.nbytes for extent in reading.extents] == [20, 20, 20]


def test_integers_can_be_copied(file):
    octets = np.fromfile(file, np.uint8)[:80]
    found = corner(view_of(Stored(TensorSpec("t", DTYPES["I64"], (2, 5)), Extent(file, 0, 80))), (2, 3))
    into = np.empty(48, np.uint8)
    with Files() as files:
        found.read_bytes(Reading(files), 0, 6, into)
    np.testing.assert_array_equal(into.view("<i8"), octets.view("<i8").reshape(2, 5)[:, :3].reshape(-1))
