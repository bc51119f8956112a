"""Every reader of what strangers write, on a few hundred damaged inputs; `run.py` takes as many as one likes."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_readers
import run
from fuzz_readers import READERS, Reader, check_stored, seeds_of

from mergekit.checkpoint import DTYPES, Extent, Stored, TensorSpec

COUNT = 200


@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs_are_read_or_refused(name):
    """In a process of its own: memory is limited there."""
    command = [sys.executable, run.__file__, "--count", str(COUNT), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.match(rf"{name}: (\d+) inputs, (\d+) accepted, (\d+) refused", done.stdout)
    assert found, done.stdout
    tried, accepted, refused = map(int, found.groups())
    assert tried == accepted + refused >= COUNT
    assert refused, "nothing was damaged"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Inputs that fail are kept here."""
    monkeypatch.setattr(run, "REGRESSIONS", tmp_path)
    monkeypatch.setattr(fuzz_readers, "REGRESSIONS", tmp_path)
    return tmp_path


def crash(file):
    return bool(json.loads(file.read_bytes()))


def hang(file):
    content = file.read_bytes()
    while True:
        with suppress(ValueError):
            return bool(json.loads(content))


@pytest.mark.parametrize(("judge", "failure"), [(crash, "JSONDecodeError|UnicodeDecodeError"), (hang, "HangError")])
def test_readers_that_fail_are_found_out(kept, monkeypatch, judge, failure):
    """The fuzzer itself must be able to fail, and keeps what made a reader fail."""
    monkeypatch.setattr(run, "SECONDS", 0.05)
    bad = Reader(judge, "config.json", "json")
    with pytest.raises(AssertionError, match=failure):
        run.fuzz("config", 40, 0, bad)
    [file] = (kept / "config").iterdir()
    with pytest.raises(ValueError, match=r"Expecting|Extra data|codec|delimiter|Invalid|Unterminated"):
        json.loads(file.read_bytes())
    with pytest.raises((ValueError, run.HangError)):
        run.fuzz("config", 0, 0, bad)


@pytest.mark.parametrize(
    ("start", "stop", "name"), [(0, 300, "a"), (-8, 92, "a"), (0, 99, "a"), (0, 100, "../b"), (50, 150, "a")]
)
def test_extents_that_cannot_be_are_found_out(tmp_path, start, stop, name):
    """What a reader accepts is looked at."""
    home = tmp_path / "home"
    home.mkdir()
    for file in ("a", "../b"):
        (home / file).write_bytes(bytes(120))
    spec = TensorSpec("a", DTYPES["U8"], (100,))
    check_stored(Stored(spec, Extent(home / "a", 20, 120)), home)
    with pytest.raises(AssertionError):
        check_stored(Stored(spec, Extent(home / name, start, stop)), home)


def test_memory_is_limited():
    """What asks for a gigabyte gets an error, in a process that has said so."""
    code = f"import sys; sys.path.insert(0, {str(Path(run.__file__).parent)!r}); import run; run.limit_memory()\n"
    done = subprocess.run([sys.executable, "-c", code + "bytearray(10**9)"], capture_output=True, text=True)
    assert "MemoryError" in done.stderr
    done = subprocess.run([sys.executable, "-c", code + "bytearray(10**8)"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_reader_has_sound_inputs_to_begin_with(tmp_path):
    for name, reader in READERS.items():
        assert seeds_of(name), name
        for seed in seeds_of(name):
            folder = tmp_path / name / seed.name
            folder.mkdir(parents=True)
            file = reader.prepare(folder)
            file.write_bytes(seed.read_bytes())
            assert reader.judge(file), seed


def test_seeds_and_regressions_are_small():
    files = [file for folder in (fuzz_readers.SEEDS, fuzz_readers.REGRESSIONS) for file in folder.rglob("*")]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 500_000
