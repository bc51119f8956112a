"""Reading operands and handing output over, each by one call: the same as step by step, and no more than was there."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, weights_like

from mergekit.kernels import GRAIN, fused, grains


@pytest.fixture
def files(tmp_path):
    """Open files of 1,000 bytes each, and what is in them."""
    contents = [np.random.default_rng(number).integers(0, 256, 1000, np.uint8) for number in range(3)]
    descriptors = []
    for number, octets in enumerate(contents):
        path = tmp_path / str(number)
        path.write_bytes(octets.tobytes())
        descriptors.append(os.open(path, os.O_RDWR))
    yield np.array(descriptors), contents
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, 300])
def test_rows_come_from_their_own_files_and_places(files, size):
    descriptors, contents = files
    starts, rows = np.array([0, 17, 400]), np.full((3, size), 77, np.uint8)
    assert fused.read_rows(descriptors, starts, 5, rows) == 3
    for row, octets, start in zip(rows, contents, starts, strict=True):
        np.testing.assert_array_equal(row, octets[start + 5 : start + 5 + size])


def test_rows_before_the_one_that_is_not_whole_are_counted(files):
    descriptors, contents = files
    rows = np.zeros((3, 600), np.uint8)
    assert fused.read_rows(descriptors, np.array([0, 401, 0]), 0, rows) == 1
    np.testing.assert_array_equal(rows[0], contents[0][:600])
    assert fused.read_rows(np.array([-1, *descriptors[1:]]), np.zeros(3, np.int64), 0, rows) == 0


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(FORMATS), size=st.integers(0, 3 * GRAIN), offset=st.integers(0, 9), seed=st.integers(0, 99))
def test_handing_over_is_measuring_checking_and_writing(tmp_path_factory, name, size, offset, seed):
    out, reference = weights_like(seed, size, name), weights_like(seed + 1, size, name)
    sums, expected = np.empty((grains(size), 3)), np.empty((grains(size), 3))
    place, found = offset * out.itemsize, np.empty(3, np.int64)
    path = tmp_path_factory.mktemp("out") / "weights"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fused.hand_over(out, reference, GRAIN, sums, out.view(np.uint8), place, descriptor, 3, found)
    os.close(descriptor)
    broken = fused.measure(out, reference, GRAIN, expected)
    assert found.tolist() == [broken, fused.checksum(out.view(np.uint8), place), out.nbytes]
    np.testing.assert_array_equal(sums, expected)
    assert path.read_bytes()[3 + place :] == out.tobytes()


def test_what_cannot_be_written_is_measured_all_the_same(files):
    out, sums, found = np.ones(5, np.float32), np.empty((1, 3)), np.empty(3, np.int64)
    fused.hand_over(out, out, GRAIN, sums, out.view(np.uint8), 0, -1, 0, found)
    assert found[2] == -1
    assert sums[0].tolist() == [5, 0, 5]
