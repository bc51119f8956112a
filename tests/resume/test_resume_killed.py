"""Merges that are killed at random moments (SIGKILL), or for which the disk is full, end in the same bytes.

A few kills are part of every test run. More, at other moments: ``MERGEKIT_KILLS=50 pytest tests/resume``.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from interrupted import assert_done, contents, partial_of
from tiny_checkpoints import llama_config, llama_shapes, recipe, write_hollow

SOURCE = Path(__file__).parents[2] / "src"
CONFIG = llama_config(layers=6, width=256, inner=1536, rows=4096)
KILLS = int(os.environ.get("MERGEKIT_KILLS", "12"))
SHARDS = ("--out-shard-size", "5MB")


def fill(folder, seed):
    """A model of random numbers, some 20 MB; half of it are those of the first one."""
    write_hollow(folder, llama_shapes(CONFIG), CONFIG)
    file = folder / "model.safetensors"
    draw = np.random.default_rng(seed)
    with file.open("r+b") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        entries = (file.stat().st_size - start) // 2
        weights = np.random.default_rng(0).normal(0, 0.05, entries) + 0.01 * seed * draw.normal(0, 1, entries)
        stream.seek(start)
        stream.write((weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b", "c")):
        fill(root / name, seed)
    return root


MERGES = {
    "della": ("yaml", "out", SHARDS),
    "sce": ("yaml", "out", ("-j", "1")),
    "karcher": ("yaml", "out", SHARDS),
    "dare_ties": ("yaml", "out", ("-j", "3", "--max-memory", "350MB")),
    "linear": ("yaml", "out", SHARDS),
    "breadcrumbs": ("pytorch", "out.safetensors", ()),
}
"""Methods, the commands that carry them out, what they make, and more arguments."""

SETTINGS = {"della": {"density": 0.5, "epsilon": 0.2}, "dare_ties": {"density": 0.5}, "linear": {"weight": 0.4}}


def command(method, models, folder):
    """A merge as one types it."""
    kind, name, arguments = MERGES[method]
    inside = "model.safetensors" if kind == "pytorch" else ""
    entries = [(models / letter / inside, SETTINGS.get(method, {})) for letter in "abc"]
    base = None if method in ("karcher", "linear") else str(models / "base" / inside)
    folder.mkdir(parents=True)
    (folder / "merge.yml").write_text(recipe(method, entries, base_model=base))
    call = [sys.executable, "-m", "mergekit.cli.main", kind, str(folder / "merge.yml"), str(folder / name), *arguments]
    return call, folder / name


def start(call, **settings):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


def finish(call):
    process = start(call)
    said = process.communicate(timeout=100)[1].decode()
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory):
    """For each method the contents of the output and how long the merge takes, in seconds."""
    found = {}
    for method in MERGES:
        call, out = command(method, models, tmp_path_factory.mktemp(method) / "plain")
        began = time.perf_counter()
        finish(call)
        found[method] = (contents(out), time.perf_counter() - began)
        shutil.rmtree(out.parent)
    return found


def lines(out):
    """How many tensors are finished."""
    file = partial_of(out) / "journal.jsonl"
    try:
        return file.read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return -1


def await_lines(out, count, process):
    """Wait until so many tensors are finished, or the merge is."""
    while process.poll() is None and lines(out) < count:
        time.sleep(0.001)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "merge.yml")


def test_killed_at_random_moments(models, undisturbed, tmp_path):
    """One merge after the other is killed, some of them several times, and then let be.

    Every third kill comes at any time of the process; the others when any number of tensors are finished.
    """
    draw = random.Random(f"kills {KILLS}")
    tensors = len(llama_shapes(CONFIG))
    killed, continued, rounds = 0, 0, cycle(MERGES)
    while killed < KILLS:
        method = next(rounds)
        expected, seconds = undisturbed[method]
        call, out = command(method, models, tmp_path / "merge")
        for _ in range(draw.randint(1, 3)):
            process = start(call)
            if draw.random() < 1 / 3:
                time.sleep(draw.uniform(0, seconds))
            else:
                await_lines(out, draw.randint(min(lines(out) + 1, tensors), tensors), process)
                time.sleep(draw.uniform(0, 0.02))
            process.kill()
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
            if out.exists():
                assert contents(out) == expected
                break
            assert set(names(out.parent)) <= {partial_of(out).name}
        else:
            continued += "is continued" in finish(call)
            assert_done(out, expected)
        shutil.rmtree(out.parent)
    assert continued >= KILLS // 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_hand(number, models, undisturbed, tmp_path):
    call, out = command("della", models, tmp_path / "merge")
    # Tests that run in the background ignore Ctrl-C, and so would what they start.
    process = start(call, preexec_fn=partial(signal.signal, number, signal.SIG_DFL))
    await_lines(out, 2, process)
    process.send_signal(number)
    said = process.communicate()[1].decode()
    assert (process.returncode, said.strip()) == (130, "interrupted; the same command continues where this one ended")
    assert names(out.parent) == [partial_of(out).name]
    assert "an interrupted merge is continued" in finish(call)
    assert_done(out, undisturbed["della"][0])


def test_a_file_that_may_not_grow_and_then_may(models, undisturbed, tmp_path):
    """Space is reserved first; what cannot be reserved is no merge that could be continued."""
    expected, _ = undisturbed["linear"]
    call, out = command("linear", models, tmp_path / "out")
    process = start(call, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
    assert b"larger than the system allows" in process.communicate()[1]
    assert process.returncode == 5
    assert names(out.parent) == []
    finish(call)
    assert_done(out, expected)


FULL = """
import errno, os, sys
from mergekit.checkpoint.writing import ShardWriter
from mergekit.cli.main import main_yaml
real, outlet, left = os.pwrite, ShardWriter.outlet, int(sys.argv.pop(1))
full = os.open("/dev/full", os.O_WRONLY)
def takes(count):
    global left
    left -= count
    return left >= 0
def pwrite(descriptor, octets, start):
    if not takes(len(octets)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(descriptor, octets, start)
def outlet_while_there_is_room(writer, name):
    return outlet(writer, name) if takes(writer.places[name].nbytes) else (full, 0)
os.pwrite, ShardWriter.outlet = pwrite, outlet_while_there_is_room
del os.posix_fallocate
main_yaml()
"""
"""A disk that is full after so many bytes: kernels meet one that really is, and Python one that says so."""


def test_a_disk_that_fills_up_and_then_has_room_again(models, undisturbed, tmp_path):
    """On a file system that cannot reserve space the disk is full in the middle; what is finished is kept."""
    expected, _ = undisturbed["linear"]
    call, out = command("linear", models, tmp_path / "out")
    for left in (5_000_000, 9_000_000):
        process = start([sys.executable, "-c", FULL, str(left), *call[4:]])
        said = process.communicate()[1].decode()
        assert process.returncode == 5, said
        assert "no space for" in said
        assert "making room on this one, and the same command again, which continues where this one ended" in said
        assert names(out.parent) == [partial_of(out).name]
    assert "an interrupted merge is continued" in finish(call)
    assert_done(out, expected)


def test_a_second_process_is_refused_and_the_first_goes_on(models, undisturbed, tmp_path):
    call, out = command("della", models, tmp_path / "merge")
    first = start(call)
    await_lines(out, 1, first)
    first.send_signal(signal.SIGSTOP)
    second = start([*call, "--overwrite", "--restart"])
    said = second.communicate()[1].decode()
    first.send_signal(signal.SIGCONT)
    assert (second.returncode, "another process is writing this output" in said) == (5, True), said
    said = first.communicate()[1]
    assert first.returncode == 0, said
    assert_done(out, undisturbed["della"][0])


def test_restart_and_another_recipe_from_the_command_line(models, undisturbed, tmp_path):
    call, out = command("linear", models, tmp_path / "out")
    start([sys.executable, "-c", FULL, "9000000", *call[4:]]).communicate()
    file = out.parent / "merge.yml"
    file.write_text(file.read_text().replace("0.4", "0.3"))
    process = start(call)
    assert b"an interrupted merge with another recipe is in the way" in process.communicate()[1]
    assert process.returncode == 5
    assert "interrupted" not in finish([*call, "--restart"])
    file.write_text(file.read_text().replace("0.3", "0.4"))
    finish([*call, "--overwrite"])
    assert_done(out, undisturbed["linear"][0])
