"""The parts of a merge on a cluster that need no cluster: batches, what travels, and the command line."""

import pickle
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from two_nodes import SOURCE

from mergekit import errors
from mergekit.checkpoint import Extent
from mergekit.checkpoint.hub.remote import Location
from mergekit.checkpoint.writing import RangeWriter
from mergekit.cli.main import commands
from mergekit.cli.merge import merge
from mergekit.cli.options import Option
from mergekit.engine.batches import batches, dealt
from mergekit.errors import MergekitError, OutputError, Place, Problem, RecipeError, SeveralProblemsError

SIZES = st.lists(st.integers(0, 1000), max_size=60).map(lambda sizes: list(enumerate(sizes)))


@given(SIZES, st.integers(1, 9), st.integers(1, 2000))
def test_every_task_is_in_one_batch(sizes, workers, worth):
    found = batches(sizes, workers, worth)
    assert sorted(index for batch in found for index in batch.tasks) == [index for index, _ in sizes]
    assert all(batch.nbytes == sum(sizes[index][1] for index in batch.tasks) for batch in found)


@given(SIZES, st.integers(1, 9), st.integers(1, 2000))
def test_batches_are_large_enough_and_not_too_large(sizes, workers, worth):
    found = batches(sizes, workers, worth)
    limit = min(worth, sum(size for _, size in sizes) // (4 * workers))
    assert all(batch.nbytes <= limit or len(batch.tasks) == 1 for batch in found)
    assert [batch.nbytes for batch in found] == sorted((batch.nbytes for batch in found), reverse=True)
    neighbours = sorted(found, key=lambda batch: batch.tasks)
    for one, other in pairwise(neighbours):
        assert one.tasks[-1] < other.tasks[0]
        assert one.nbytes + sizes[other.tasks[0]][1] > limit


@given(SIZES, st.integers(1, 9))
def test_workers_share_evenly(sizes, workers):
    given = batches(sizes, workers)
    found = dealt(given, workers)
    assert len(found) == workers
    assert sorted(batch.tasks for own in found for batch in own) == sorted(batch.tasks for batch in given)
    totals = [sum(batch.nbytes for batch in own) for own in found]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] - totals[-1] <= max((batch.nbytes for batch in given), default=0)


def subclasses(kind):
    return [kind, *(heir for own in kind.__subclasses__() for heir in subclasses(own))]


PLACE = Place("models[0]", "merge.yml", 3)


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in subclasses(MergekitError)
        if kind.__module__ == errors.__name__ and kind is not SeveralProblemsError
    ],
)
def test_errors_travel(kind):
    if kind is RecipeError:
        error = RecipeError([Problem("one", PLACE), Problem("two", hint="three")])
    else:
        error = kind("one", place=PLACE, expected="two", hint="three")
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (kind, str(error), vars(error))


def test_several_errors_travel_together():
    error = SeveralProblemsError([RecipeError([Problem("one")]), OutputError("two", place="here")])
    found = pickle.loads(pickle.dumps(error))
    assert (str(found), found.exit_code, len(found.errors)) == (str(error), 3, 2)


def test_a_place_on_the_hub_travels():
    assert pickle.loads(pickle.dumps(Location("https://hub/file"))).url == "https://hub/file"


def test_ranges_are_written_and_all_else_stays(tmp_path):
    file = tmp_path / "shard"
    file.write_bytes(b"." * 10)
    with RangeWriter({"one": Extent(file, 2, 5), "two": Extent(tmp_path / "none", 0, 1)}) as writer:
        writer.write("one", 1, np.frombuffer(b"xy", np.uint8))
        writer.sync()
        assert file.read_bytes() == b"...xy....."
        with pytest.raises(ValueError, match="bytes 2 to 4 are outside of 'one' with 3 bytes"):
            writer.write("one", 2, np.zeros(2, np.uint8))
        with pytest.raises(OutputError, match="No such file"):
            writer.write("two", 0, np.zeros(1, np.uint8))


@pytest.mark.parametrize(
    ("line", "address", "rest"),
    [
        ("--ray merge.yml out", "auto", ["merge.yml", "out"]),
        ("merge.yml out --ray", "auto", ["merge.yml", "out"]),
        ("--ray head:6379 merge.yml out", "head:6379", ["merge.yml", "out"]),
        ("merge.yml --ray=10.0.0.1:6379 out", "10.0.0.1:6379", ["merge.yml", "out"]),
        ("--ray local -- merge.yml --ray", "local", ["merge.yml", "--ray"]),
        ("--ray --quiet merge.yml out", "auto", ["merge.yml", "out"]),
    ],
)
def test_an_address_may_be_left_out(line, address, rest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merge.yml").touch()
    context = merge.make_context("yaml", line.split(), resilient_parsing=True)
    assert (context.params["ray"], [context.params["config_file"], str(context.params["out_path"])]) == (address, rest)


def test_other_options_keep_their_words():
    plain = Option(["--ray"])
    assert plain.joined(["--ray", "merge.yml"]) == ["--ray", "merge.yml"]


def test_commands_know_of_clusters():
    for name in ("yaml", "pytorch", "moe", "plan"):
        said = CliRunner().invoke(commands, [name, "--help"]).output
        assert "--ray [ADDRESS]" in said
        assert "--ray-collect" in said


WITHOUT = """
import sys
sys.modules["ray"] = None
from mergekit.cli.main import main_yaml
main_yaml()
"""


def test_without_ray_it_is_named_with_the_command_that_installs_it(tmp_path):
    from tiny_checkpoints import recipe, write_llama

    write_llama(tmp_path / "a", layers=1)
    (tmp_path / "merge.yml").write_text(recipe("passthrough", [tmp_path / "a"]))

    def run(*words):
        line = [sys.executable, "-c", WITHOUT, *words]
        return subprocess.run(
            line, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(SOURCE)}, check=False
        )

    assert run("--help").returncode == 0
    done = run("merge.yml", "out", "--ray", "-j", "1")
    assert done.returncode == 8
    assert "pip install 'mergekit[ray]'" in done.stderr
    assert not (tmp_path / "out.partial").exists()
