"""Machine code is kept between processes, wherever there is room for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mergekit

SOURCE = str(Path(mergekit.__file__).parents[1])
PROGRAM = """
import sys
import numpy as np
from mergekit.kernels import compiled
before = compiled.first_use()
from mergekit.kernels.fused import widen
out = np.empty(3, np.float32)
if "narrow first" in sys.argv:
    from mergekit.kernels.fused import narrow
    narrow(np.zeros(3, np.float32), np.empty(3, np.uint16))
widen(np.array([0x3F80, 0xC000, 0x3E80], np.uint16), out)
assert out.tolist() == [1.0, -2.0, 0.25]
print(before, compiled.first_use(), "numba" in sys.modules, compiled.cache_folder())
"""


def start(cache, temporary, *arguments):
    """A new process that widens three numbers, with a cache and a temporary folder of its own."""
    temporary.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    places = {"XDG_CACHE_HOME": str(cache), "TMPDIR": str(temporary), "PYTHONPATH": SOURCE}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, env={**kept, **places}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answers(process):
    """Whether it was the first use before and after, whether the compiler was imported, and the folder of the cache."""
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    before, after, compiler, folder = said.split()
    return before == "True", after == "True", compiler == "True", Path(folder)


def run(cache, temporary, *arguments):
    return answers(start(cache, temporary, *arguments))


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_second_process_loads_what_the_first_one_compiled(tmp_path):
    assert run(tmp_path / "cache", tmp_path / "tmp")[:3] == (True, False, True)
    files = contents(tmp_path)
    assert {path.suffix for path in files} == {".kernel"}
    *uses, folder = run(tmp_path / "cache", tmp_path / "tmp")
    assert uses == [False, False, False]
    assert folder.is_relative_to(tmp_path / "cache")
    assert contents(tmp_path) == files


def test_processes_that_compile_at_the_same_time_do_not_disturb_each_other(tmp_path):
    started = [start(tmp_path / "cache", tmp_path / "tmp") for _ in range(3)]
    assert len({answers(process)[-1] for process in started}) == 1
    assert run(tmp_path / "cache", tmp_path / "tmp")[:3] == (False, False, False)


def test_files_of_two_processes_that_compile_in_another_order_go_together(tmp_path):
    """The last to write the object code need not be the last to write what is known about it."""
    *_, one = run(tmp_path / "one", tmp_path / "tmp")
    *_, other = run(tmp_path / "other", tmp_path / "tmp", "narrow first")
    for file in other.glob("combine.widen-*"):
        shutil.copy(file, one)
    assert run(tmp_path / "one", tmp_path / "tmp")[0] is False


def test_a_cache_that_cannot_be_a_folder_is_replaced_by_a_temporary_one(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    *_, folder = run(blocked, tmp_path / "tmp")
    assert folder.is_relative_to(tmp_path / "tmp")
    assert contents(folder)


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    *_, folder = run(blocked, tmp_path / "tmp")
    folder.chmod(0o777)
    before, _, compiler, chosen = run(blocked, tmp_path / "tmp")
    assert (before, compiler) == (True, True)
    assert chosen != folder


@pytest.mark.parametrize("size", [0, 100, -1])
def test_damaged_machine_code_is_compiled_again(tmp_path, size):
    *_, folder = run(tmp_path / "cache", tmp_path / "tmp")
    (file,) = folder.glob("combine.widen-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    assert run(tmp_path / "cache", tmp_path / "tmp")[2] is True
    assert run(tmp_path / "cache", tmp_path / "tmp")[2] is False
