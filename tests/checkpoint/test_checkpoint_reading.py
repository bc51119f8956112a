import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mergekit.checkpoint import DTYPES, Extent, Files, Stored, TensorSpec, read_tensor
from mergekit.errors import CheckpointError


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(np.arange(1000, dtype="<u2").tobytes())
    return file


def test_many_threads_read_what_is_there(file):
    expected = np.arange(1000, dtype="<u2")

    def read(start):
        part = np.empty(10, "<u2")
        files.read(Extent(file, 2 * start, 2 * start + 20), part)
        return np.array_equal(part, expected[start : start + 10])

    with Files() as files, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(990)))


def first_free_descriptor():
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


def test_a_file_is_opened_once_and_closed_at_the_end(file):
    free = first_free_descriptor()
    buffer = bytearray(2)
    with Files() as files:
        files.prefetch(Extent(file, 0, 2))
        file.unlink()
        files.read(Extent(file, 2, 4), memoryview(buffer))
        assert first_free_descriptor() != free
    assert buffer == b"\1\0"
    assert first_free_descriptor() == free


def test_prefetch_changes_nothing(file):
    buffer = bytearray(4)
    with Files() as files:
        files.prefetch(Extent(file, 0, 2000))
        files.read(Extent(file, 2, 6), memoryview(buffer))
    assert buffer == b"\1\0\2\0"


def test_a_file_that_became_shorter_is_named(file):
    with Files() as files, pytest.raises(CheckpointError, match="ends at byte 2000") as caught:
        files.read(Extent(file, 1990, 2010), memoryview(bytearray(20)))
    assert caught.value.problem.place == str(file)


def test_a_file_that_is_gone_is_named(tmp_path):
    with Files() as files, pytest.raises(CheckpointError, match="No such file") as caught:
        files.read(Extent(tmp_path / "gone", 0, 1), memoryview(bytearray(1)))
    assert caught.value.problem.place == str(tmp_path / "gone")


def test_a_read_that_the_system_refuses_is_named(tmp_path):
    with Files() as files, pytest.raises(CheckpointError, match="cannot read the file: Is a directory"):
        files.read(Extent(tmp_path, 0, 1), memoryview(bytearray(1)))


def test_a_buffer_of_another_size_is_refused(file):
    with Files() as files, pytest.raises(ValueError, match="19 bytes cannot hold an extent of 20"):
        files.read(Extent(file, 0, 20), memoryview(bytearray(19)))


def test_a_buffer_with_gaps_is_refused(file):
    with Files() as files, pytest.raises(ValueError, match="contiguous"):
        files.read(Extent(file, 0, 20), np.empty(20, "<u2")[::2])


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_read_as_its_storage(tmp_path, name):
    spec = TensorSpec("x", DTYPES[name], (2, 4))
    (tmp_path / "x").write_bytes(b"!" + bytes([1]) * spec.nbytes)
    array = read_tensor(Stored(spec, Extent(tmp_path / "x", 1, 1 + spec.nbytes)))
    assert array.shape == ((2, 4) if spec.dtype.bits >= 8 else (spec.nbytes,))
    assert array.dtype == np.dtype(spec.dtype.storage)
    assert array.tobytes() == bytes([1]) * spec.nbytes


@pytest.mark.parametrize("shape", [(), (0,), (0, 3)])
def test_scalars_and_empty_tensors_are_read(file, shape):
    spec = TensorSpec("x", DTYPES["U16"], shape)
    array = read_tensor(Stored(spec, Extent(file, 2, 2 + spec.nbytes)))
    assert array.shape == shape
    assert array.tolist() == (1 if shape == () else [])
