import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.numpy import load_file

from mergekit.checkpoint import (
    DTYPES,
    ShardWriter,
    TensorSpec,
    open_checkpoint,
    plan_shards,
    read_header,
    shard_index,
)
from mergekit.checkpoint.writing import output_error
from mergekit.errors import OutputError

ALL = list(DTYPES.values())


@st.composite
def spec_lists(draw):
    dtypes = draw(st.lists(st.sampled_from(ALL), max_size=12))
    return [
        TensorSpec(f"t{number}", dtype, (4, draw(st.integers(0, 5))) if dtype.bits < 8 else (draw(st.integers(0, 9)),))
        for number, dtype in enumerate(dtypes)
    ]


limits = st.integers(0, 200)


@given(spec_lists(), limits)
@settings(deadline=None)
def test_every_tensor_is_planned_once_and_in_order(specs, limit):
    shards = plan_shards(specs, limit, {})
    first = 0
    for shard in shards:
        part = specs[first : first + len(shard.specs)]
        assert sorted(shard.specs, key=specs.index) == part
        first += len(part)
    assert first == len(specs)


@given(spec_lists(), limits)
@settings(deadline=None)
def test_a_shard_ends_exactly_where_the_limit_says(specs, limit):
    shards = plan_shards(specs, limit, {})
    sizes = [sum(spec.nbytes for spec in shard.specs) for shard in shards]
    if limit == 0:
        assert len(shards) == 1
        return
    for shard, size in zip(shards, sizes, strict=True):
        assert size <= limit or len([spec for spec in shard.specs if spec.nbytes]) == 1
    for size, following in zip(sizes, shards[1:], strict=False):
        assert size + min(following.specs, key=specs.index).nbytes > limit


@given(spec_lists(), limits)
@settings(deadline=None)
def test_every_tensor_starts_at_a_multiple_of_its_element_size(specs, limit):
    for shard in plan_shards(specs, limit, {"format": "pt"}):
        for spec in shard.specs:
            assert shard.starts[spec.name] % max(spec.dtype.bits // 8, 1) == 0


@given(spec_lists(), limits)
@settings(deadline=None)
def test_planned_files_are_complete_for_safetensors(specs, limit):
    shards = plan_shards(specs, limit, {"format": "pt"})
    read = {}
    for shard in shards:
        read |= dict(deserialize(shard.head + bytes(shard.nbytes - len(shard.head))))
    assert {name: (t["dtype"], tuple(t["shape"])) for name, t in read.items()} == {
        spec.name: (spec.dtype.name, spec.shape) for spec in specs
    }


@given(spec_lists(), limits)
@settings(deadline=None)
def test_names_and_index_follow_the_convention(specs, limit):
    shards = plan_shards(specs, limit, {})
    count = len(shards)
    if count == 1:
        assert shards[0].file == "model.safetensors"
    else:
        assert [shard.file for shard in shards] == [
            f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)
        ]
    index = json.loads(json.dumps(shard_index(shards, {"mergekit_version": "1"})))
    assert index["metadata"] == {"total_size": sum(spec.nbytes for spec in specs), "mergekit_version": "1"}
    assert index["weight_map"] == {spec.name: shard.file for shard in shards for spec in shard.specs}


def test_a_tensor_beyond_the_limit_has_its_own_shard():
    specs = [TensorSpec(name, DTYPES["U8"], (size,)) for name, size in (("a", 1), ("b", 50), ("c", 4), ("d", 6))]
    shards = plan_shards(specs, 10, {})
    assert [[spec.name for spec in shard.specs] for shard in shards] == [["a"], ["b"], ["c", "d"]]


def test_nothing_to_write_is_one_empty_shard():
    [shard] = plan_shards([], 10, {})
    assert shard.file == "model.safetensors"
    assert deserialize(shard.head) == []
    assert shard.nbytes == len(shard.head)


def test_impossible_plans_are_refused():
    spec = TensorSpec("a", DTYPES["U8"], (8,))
    with pytest.raises(ValueError, match="share a name"):
        plan_shards([spec, spec], 8, {})
    with pytest.raises(ValueError, match="-1 bytes"):
        plan_shards([spec], -1, {})


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        "half": random.normal(size=(7, 5)).astype("<f2"),
        "double": random.normal(size=(3,)),
        "scalar": np.array(1.5, "<f4"),
        "empty": np.zeros((0, 4), "<f4"),
        "long": random.integers(0, 255, 5000).astype("|u1"),
    }


NAMES = {"<f2": "F16", "<f8": "F64", "<f4": "F32", "|u1": "U8"}


def plan(arrays, limit):
    specs = [TensorSpec(name, DTYPES[NAMES[array.dtype.str]], array.shape) for name, array in arrays.items()]
    return plan_shards(specs, limit, {"format": "pt"})


def write_whole(folder, shards, arrays):
    with ShardWriter(folder, shards) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, array)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("limit", [0, 64])
def test_safetensors_reads_back_what_was_written(tmp_path, arrays, limit):
    shards = plan(arrays, limit)
    write_whole(tmp_path, shards, arrays)
    read = {}
    for shard in shards:
        read |= load_file(tmp_path / shard.file)
        assert (tmp_path / shard.file).stat().st_size == shard.nbytes
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_what_was_written_opens_as_a_checkpoint(tmp_path, arrays):
    shards = plan(arrays, 64)
    write_whole(tmp_path, shards, arrays)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shard_index(shards, {})))
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(arrays)
    assert checkpoint.nbytes == sum(array.nbytes for array in arrays.values())
    assert checkpoint.remarks == ()


def test_threads_out_of_order_write_the_same_bytes(tmp_path, arrays):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    shards = plan(arrays, 64)
    write_whole(tmp_path / "whole", shards, arrays)
    octets = {name: memoryview(array.tobytes()) for name, array in arrays.items()}
    parts = [(name, start) for name, view in octets.items() for start in range(0, view.nbytes, 7)]
    Random(1).shuffle(parts)
    with ShardWriter(tmp_path / "parts", shards) as writer, ThreadPoolExecutor(8) as threads:
        for name, start in parts:
            threads.submit(writer.write, name, start, octets[name][start : start + 7])
        threads.shutdown()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_files_have_their_size_before_the_first_write(tmp_path, arrays):
    shards = plan(arrays, 64)
    with ShardWriter(tmp_path, shards):
        assert {file.name: file.stat().st_size for file in tmp_path.iterdir()} == {
            shard.file: shard.nbytes for shard in shards
        }
        assert all(len(read_header(tmp_path / shard.file).tensors) == len(shard.specs) for shard in shards)


def test_a_second_writer_of_the_same_plan_keeps_what_was_written(tmp_path, arrays):
    shards = plan(arrays, 64)
    with suppress(KeyboardInterrupt), ShardWriter(tmp_path, shards) as writer:
        writer.write("half", 0, arrays["half"])
        raise KeyboardInterrupt
    write_whole(tmp_path, shards, {name: array for name, array in arrays.items() if name != "half"})
    (tmp_path / "again").mkdir()
    write_whole(tmp_path / "again", shards, arrays)
    assert {shard.file: (tmp_path / shard.file).read_bytes() for shard in shards} == contents(tmp_path / "again")


def test_a_longer_file_of_the_same_name_is_cut(tmp_path, arrays):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100_000)
    [shard] = plan(arrays, 0)
    write_whole(tmp_path, [shard], arrays)
    np.testing.assert_array_equal(load_file(tmp_path / shard.file)["half"], arrays["half"])


def test_files_have_the_ordinary_mode(tmp_path, arrays):
    umask = os.umask(0o022)
    try:
        write_whole(tmp_path, plan(arrays, 0), arrays)
    finally:
        os.umask(umask)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, 71), (70, 1), (69, 2), (71, 0)])
def test_a_write_outside_of_its_tensor_is_refused(tmp_path, arrays, offset, size):
    with ShardWriter(tmp_path, plan(arrays, 0)) as writer:
        before = contents(tmp_path)
        with pytest.raises(ValueError, match="outside of 'half' with 70 bytes"):
            writer.write("half", offset, memoryview(b"x" * size))
        assert contents(tmp_path) == before


def test_an_unknown_tensor_is_refused(tmp_path, arrays):
    with ShardWriter(tmp_path, plan(arrays, 0)) as writer, pytest.raises(KeyError):
        writer.write("unknown", 0, memoryview(b"x"))


def first_free_descriptor():
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_files_are_closed_at_the_end_and_after_an_error(tmp_path, arrays, error):
    free = first_free_descriptor()
    with suppress(KeyboardInterrupt), ShardWriter(tmp_path, plan(arrays, 64)):
        assert first_free_descriptor() != free
        if error:
            raise error
    assert first_free_descriptor() == free


def test_a_folder_that_is_not_there_is_named(tmp_path, arrays):
    with pytest.raises(OutputError, match="No such file or directory") as caught:
        ShardWriter(tmp_path / "gone", plan(arrays, 0))
    assert caught.value.problem.place == str(tmp_path / "gone" / "model.safetensors")


def test_files_are_closed_if_one_cannot_be_created(tmp_path, arrays):
    shards = plan(arrays, 64)
    (tmp_path / shards[-1].file).mkdir()
    free = first_free_descriptor()
    with pytest.raises(OutputError, match="Is a directory"):
        ShardWriter(tmp_path, shards)
    assert first_free_descriptor() == free


LIMITED = """
import resource, sys
from pathlib import Path
from mergekit.checkpoint import DTYPES, ShardWriter, TensorSpec, plan_shards
from mergekit.errors import OutputError

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    ShardWriter(Path(sys.argv[1]), plan_shards([TensorSpec("x", DTYPES["U8"], (8192,))], 0, {}))
except OutputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_file_larger_than_the_system_allows_is_an_output_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == OutputError.exit_code, done.stderr
    assert "larger than the system allows" in done.stdout
    assert "model.safetensors" in done.stdout
    assert "ulimit -f" in done.stdout


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_in_bytes(tmp_path, number):
    error = output_error(OSError(number, os.strerror(number)), tmp_path / "x", 123_456)
    assert "no space for 123456 bytes" in error.problem.what
    assert any(word.isdigit() for word in error.problem.what.split("bytes: ")[1].split())
    assert error.problem.place == str(tmp_path / "x")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_without_permission_is_told(tmp_path, number):
    error = output_error(OSError(number, os.strerror(number)), tmp_path / "x", 1)
    assert os.strerror(number) in error.problem.what
    assert error.problem.hint == "a folder that you may write to"
