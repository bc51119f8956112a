"""Machine code is kept between processes, wherever there is room for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mergekit

SOURCE = str(Path(mergekit.__file__).parents[1])
PROGRAM = """
import numpy as np
from mergekit.kernels import compiled
before = compiled.first_use()
from mergekit.kernels.combine import widen
out = np.empty(3, np.float32)
widen(np.array([0x3F80, 0xC000, 0x3E80], np.uint16), out)
assert out.tolist() == [1.0, -2.0, 0.25]
print(before, compiled.first_use(), compiled.CACHE_FOLDER)
"""


def run(cache, temporary, **extra):
    """Widen three numbers in a new process; its answers about the cache, before and after."""
    temporary.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    places = {"XDG_CACHE_HOME": str(cache), "TMPDIR": str(temporary), "PYTHONPATH": SOURCE}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env={**kept, **places, **extra},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after, folder = done.stdout.split()
    return before == "True", after == "True", Path(folder)


def compiled_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb?")}


def test_the_second_process_loads_what_the_first_one_compiled(tmp_path):
    assert run(tmp_path / "cache", tmp_path / "tmp")[:2] == (True, False)
    files = compiled_files(tmp_path)
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    before, after, folder = run(tmp_path / "cache", tmp_path / "tmp")
    assert (before, after) == (False, False)
    assert folder.is_relative_to(tmp_path / "cache")
    assert compiled_files(tmp_path) == files


def test_a_cache_that_cannot_be_a_folder_is_replaced_by_a_temporary_one(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    *_, folder = run(blocked, tmp_path / "tmp")
    assert folder.is_relative_to(tmp_path / "tmp")
    assert compiled_files(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_is_read_only_is_replaced_by_a_temporary_one(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    *_, folder = run(closed, tmp_path / "tmp")
    assert folder.is_relative_to(tmp_path / "tmp")
    assert compiled_files(folder)


def test_a_folder_chosen_for_numba_is_used(tmp_path):
    *_, folder = run(tmp_path / "cache", tmp_path / "tmp", NUMBA_CACHE_DIR=str(tmp_path / "chosen"))
    assert folder == tmp_path / "chosen"
    assert compiled_files(folder)
