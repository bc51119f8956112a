"""A merge that was interrupted continues, whatever became of its journal and its bytes, and ends in the same output."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupted import Stopper, assert_done, contents, journal_of, leave_all_but_the_last_step, partial_of, run
from tiny_checkpoints import fine_tuned, llama_config, llama_shapes, random_tensors, recipe, write_model

from mergekit.checkpoint.output import output_folder
from mergekit.engine.journal import entry_of, line_of, read_journal
from mergekit.errors import CheckpointError, NonFiniteError, OutputError
from mergekit.raw import merge_raw

OPTIONS = {"shard_bytes": 10_000}
CONFIG = llama_config(layers=2, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A base and two models."""
    folder = tmp_path_factory.mktemp("resume")
    base = random_tensors(llama_shapes(CONFIG), 0, torch.bfloat16)
    for seed, name in enumerate(("base", "a", "b")):
        write_model(folder / name, fine_tuned(base, seed) if seed else base, CONFIG)
    return folder


@pytest.fixture(scope="module")
def text(root):
    entries = [(root / name, {"density": 0.6}) for name in "ab"]
    return recipe("ties", entries, base_model=str(root / "base"))


@pytest.fixture(scope="module")
def undisturbed(root, text):
    run(text, root / "undisturbed" / "out", **OPTIONS)
    return contents(root / "undisturbed" / "out")


@pytest.fixture(scope="module")
def interrupted(root, text, undisturbed):
    """What a merge leaves of which all tensors are finished."""
    out = root / "interrupted" / "out"
    leave_all_but_the_last_step(text, out, **OPTIONS)
    assert len(journal_of(out).read_bytes().splitlines()) == 1 + len(llama_shapes(CONFIG))
    return partial_of(out)


def again(interrupted, folder):
    """A copy of what an interrupted merge left; returns the output."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copytree(interrupted, folder / "out.partial")
    return folder / "out"


def finish(text, out, undisturbed, **options):
    """Run the same command again; returns what was told, and how many lines the journal had."""
    lines = journal_of(out).read_bytes().count(b"\n")
    told = run(text, out, **{**OPTIONS, **options})
    assert_done(out, undisturbed)
    assert sum(told.bytes) == told.total
    return told, lines


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_journal_cut_anywhere_continues_to_the_same_bytes(text, interrupted, undisturbed, tmp_path, share):
    out = again(interrupted, tmp_path / "again")
    os.truncate(journal_of(out), int(share * journal_of(out).stat().st_size))
    finish(text, out, undisturbed)


def test_a_journal_cut_at_any_byte_is_believed_up_to_the_last_whole_line(interrupted):
    whole = (interrupted / "journal.jsonl").read_bytes()
    ends = [place + 1 for place, octet in enumerate(whole) if octet == 10]
    first, last = range(ends[0] + 2), range(ends[-3], ends[-1] + 1)
    file = interrupted.with_name("cut.jsonl")
    for size in (*first, *last):
        file.write_bytes(whole[:size])
        found = read_journal(file)
        lines = sum(end <= size for end in ends)
        assert (found.nbytes if found else 0) == max([0, *(end for end in ends if end <= size)])
        assert (1 + len(found.tensors) if found else 0) == lines


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_journal_ends_it_there(text, interrupted, undisturbed, tmp_path, share, bit):
    out = again(interrupted, tmp_path / "again")
    octets = bytearray(journal_of(out).read_bytes())
    octets[int(share * len(octets))] ^= 1 << bit
    journal_of(out).write_bytes(octets)
    finish(text, out, undisturbed)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_in_a_finished_tensor_is_merged_again(text, interrupted, undisturbed, tmp_path, data):
    out = again(interrupted, tmp_path / "again")
    shard = data.draw(st.sampled_from(sorted((partial_of(out) / "output").glob("*.safetensors"))))
    octets = bytearray(shard.read_bytes())
    place = data.draw(st.integers(0, len(octets) - 1))
    octets[place] ^= 1 << data.draw(st.integers(0, 7))
    shard.write_bytes(octets)
    finish(text, out, undisturbed)


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "zeros", "page of zeros"])
def test_shards_that_lost_something_are_merged_again(harm, text, interrupted, undisturbed, tmp_path):
    out = again(interrupted, tmp_path / "again")
    shard = max((partial_of(out) / "output").glob("*.safetensors"))
    size = shard.stat().st_size
    if harm == "gone":
        shard.unlink()
    elif harm in ("cut", "empty"):
        os.truncate(shard, size // 2 if harm == "cut" else 0)
    else:
        first = 4096 if harm == "page of zeros" else 0
        with shard.open("r+b") as stream:
            stream.seek(first)
            stream.write(bytes(4096 if first else size))
    finish(text, out, undisturbed)


def test_nothing_is_merged_that_is_finished(text, interrupted, undisturbed, tmp_path, monkeypatch):
    """Without its sources' bytes a finished merge still ends: nobody reads them."""
    out = again(interrupted, tmp_path / "again")
    from mergekit.checkpoint import Files

    read = Files.read
    seen = []
    monkeypatch.setattr(Files, "read", lambda self, extent, into: (seen.append(extent.file), read(self, extent, into)))
    told, _ = finish(text, out, undisturbed)
    assert {file.parent for file in seen} == {partial_of(out) / "output"}
    assert told.notices[-1:] == ["an interrupted merge is continued: 21 of 21 tensors are finished"]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_ctrl_c_keeps_what_is_finished_and_other_workers_may_go_on(text, undisturbed, tmp_path, share):
    out = tmp_path / "out"
    whole = Stopper()
    run(text, tmp_path / "whole", whole, **OPTIONS)
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        run(text, out, Stopper(share * whole.total), workers=1, **OPTIONS)
    assert not out.exists()
    before = journal_of(out).read_bytes()
    assert before.count(b"\n") > 1
    told, lines = finish(text, out, undisturbed, workers=3, max_memory=350_000_000)
    assert told.notices[-1] == f"an interrupted merge is continued: {lines - 1} of 21 tensors are finished"


def test_interrupted_again_and_again(text, undisturbed, tmp_path):
    out = tmp_path / "out"
    total = run(text, tmp_path / "whole", **OPTIONS).total
    sizes = []
    for share in (0.2, 0.4, 0.6, 0.8):
        with pytest.raises(KeyboardInterrupt):
            run(text, out, Stopper(share * total), workers=1, **OPTIONS)
        sizes.append(journal_of(out).stat().st_size)
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    finish(text, out, undisturbed)


# What is not continued


def test_another_recipe_is_refused_until_the_first_is_given_up(text, interrupted, tmp_path):
    out = again(interrupted, tmp_path / "again")
    before = journal_of(out).read_bytes()
    other = text.replace("0.6", "0.5")
    with pytest.raises(OutputError) as caught:
        run(other, out, **OPTIONS)
    said = str(caught.value)
    assert "an interrupted merge with another recipe is in the way; 21 tensors of it are finished" in said
    assert "`--overwrite` or `--restart`" in said
    assert str(partial_of(out)) in said
    assert journal_of(out).read_bytes() == before
    told = run(other, out, overwrite=True, **OPTIONS)
    assert "an interrupted merge with another recipe is given up" in told.notices
    run(other, tmp_path / "plain" / "out", **OPTIONS)
    assert_done(out, contents(tmp_path / "plain" / "out"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"seed": 3}, "another `--random-seed`"),
        ({"shard_bytes": 0}, "another `--out-shard-size`"),
        ({"device": "cpu"}, "another `--device`"),
    ],
)
def test_options_that_change_bytes_are_refused(options, what, text, interrupted, tmp_path):
    out = again(interrupted, tmp_path / "again")
    with pytest.raises(OutputError, match=f"an interrupted merge with {what}"):
        run(text, out, **{**OPTIONS, **options})
    told = run(text, out, restart=True, **{**OPTIONS, **options})
    assert not any("interrupted" in notice for notice in told.notices)


def test_options_that_change_no_byte_of_the_weights_are_not(text, interrupted, undisturbed, tmp_path):
    out = again(interrupted, tmp_path / "again")
    told, _ = finish(text, out, undisturbed, max_memory=500_000_000, workers=1)
    assert "21 of 21" in told.notices[-1]


def test_restart_begins_anew(text, interrupted, undisturbed, tmp_path):
    out = again(interrupted, tmp_path / "again")
    told = run(text, out, restart=True, **OPTIONS)
    assert_done(out, undisturbed)
    assert not any("interrupted" in notice for notice in told.notices)


def test_overwrite_alone_continues(text, interrupted, undisturbed, tmp_path):
    out = again(interrupted, tmp_path / "again")
    told = run(text, out, overwrite=True, **OPTIONS)
    assert_done(out, undisturbed)
    assert "is continued" in told.notices[-1]


def test_sources_that_changed_are_noticed(root, text, tmp_path):
    """The file is named, and the output is that of the sources as they are now."""
    for name in ("base", "a", "b"):
        shutil.copytree(root / name, tmp_path / name)
    own = text.replace(str(root), str(tmp_path))
    leave_all_but_the_last_step(own, tmp_path / "out", **OPTIONS)
    file = tmp_path / "b" / "model.safetensors"
    state = file.stat()
    shutil.copy(root / "a" / "model.safetensors", file)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    told = run(own, tmp_path / "out", **OPTIONS)
    assert told.notices[-1] == f"an interrupted merge is begun anew: {file} has changed"
    run(own, tmp_path / "plain" / "out", **OPTIONS)
    assert_done(tmp_path / "out", contents(tmp_path / "plain" / "out"))


def test_another_version_begins_anew(text, interrupted, undisturbed, tmp_path):
    out = again(interrupted, tmp_path / "again")
    first, *rest = journal_of(out).read_bytes().splitlines(keepends=True)
    merge = dict(entry_of(first))
    for key, value, why in [
        ("mergekit", "0.0.1", "it was begun by another version of mergekit"),
        ("version", "0" * 16, "it was computed by other software"),
    ]:
        journal_of(again(interrupted, tmp_path / "again")).write_bytes(line_of({**merge, key: value}) + b"".join(rest))
        told = run(text, out, **OPTIONS)
        assert told.notices[-1] == f"an interrupted merge is begun anew: {why}"
        assert_done(out, undisturbed)


METHOD = """
from mergekit.methods import merge_method
@merge_method(title="Mean", base="ignored")
def mean(models):
    return models.mean(axis=0)
"""


def test_the_code_of_a_method_is_part_of_the_merge(root, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(METHOD)
    text = recipe(f"{file}:mean", [root / "a", root / "b"])
    leave_all_but_the_last_step(text, tmp_path / "out", allow_code=True)
    file.write_text(METHOD.replace("mean(axis=0)", "max(axis=0)"))
    told = run(text, tmp_path / "out", allow_code=True)
    assert told.notices[-1] == f"an interrupted merge is begun anew: {file} has changed"
    run(text, tmp_path / "plain" / "out", allow_code=True)
    assert_done(tmp_path / "out", contents(tmp_path / "plain" / "out"))


# What stays, and what does not


def test_two_processes_never_write_one_output(text, interrupted, undisturbed, tmp_path):
    out = again(interrupted, tmp_path / "again")
    with output_folder(out, False) as folder:
        before = journal_of(out).read_bytes()
        with pytest.raises(OutputError, match="another process is writing this output"):
            run(text, out, **OPTIONS)
        assert journal_of(out).read_bytes() == before
        assert len(list(folder.glob("*.safetensors"))) > 2
        shutil.rmtree(folder)
        folder.mkdir()


def test_an_error_that_would_come_again_leaves_nothing(root, tmp_path):
    tensors = random_tensors(llama_shapes(CONFIG), 7)
    tensors["model.norm.weight"][3] = float("nan")
    write_model(tmp_path / "broken", tensors, CONFIG)
    with pytest.raises(NonFiniteError):
        run(recipe("linear", [root / "a", tmp_path / "broken"]), tmp_path / "out", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("error", [OutputError("the disk is full"), CheckpointError("the network is down", hint="x")])
def test_an_error_that_may_pass_leaves_what_is_finished(error, text, undisturbed, tmp_path):
    total = run(text, tmp_path / "whole", **OPTIONS).total
    with pytest.raises(type(error), match="the same command again, which continues where this one ended") as caught:
        run(text, tmp_path / "out", Stopper(total // 2, error), workers=1, **OPTIONS)
    assert caught.value.problem.what == error.problem.what
    finish(text, tmp_path / "out", undisturbed)


@pytest.mark.parametrize("left", [[], [".mergekit-writes-here"], [".mergekit-writes-here", "model.safetensors"]])
def test_what_was_just_begun_is_taken_over(left, text, undisturbed, tmp_path):
    partial_of(tmp_path / "out").mkdir()
    for name in left:
        (partial_of(tmp_path / "out") / name).touch()
    run(text, tmp_path / "out", **OPTIONS)
    assert_done(tmp_path / "out", undisturbed)


def test_a_journal_of_what_has_its_name_already_means_nothing(text, interrupted, undisturbed, tmp_path):
    """A process may be killed after the folder got its name, and before the rest was removed."""
    out = again(interrupted, tmp_path / "again")
    shutil.rmtree(partial_of(out) / "output")
    run(text.replace("0.6", "0.5"), out, **OPTIONS)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_a_raw_merge_into_one_file_continues(root, tmp_path):
    from mergekit.merging import JobOptions
    from mergekit.plan import PlanOptions

    text = recipe("linear", [root / "a" / "model.safetensors", root / "b" / "model.safetensors"])
    options = JobOptions(PlanOptions(workers=1))
    whole = Stopper()
    merge_raw(text, tmp_path / "plain" / "out.safetensors", options=options, progress=whole)
    out = tmp_path / "out.safetensors"
    with pytest.raises(KeyboardInterrupt):
        merge_raw(text, out, options=options, progress=Stopper(whole.total // 2))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out.safetensors.partial"]
    told = Stopper()
    merge_raw(text, out, options=options, progress=told)
    assert "is continued" in told.notices[-1]
    assert_done(out, contents(tmp_path / "plain" / "out.safetensors"))


def test_the_journal_says_what_it_is_about(interrupted, undisturbed):
    entries = [entry_of(line) for line in (interrupted / "journal.jsonl").read_bytes().splitlines(keepends=True)]
    assert {Path(file).parent.name for file in entries[0]["inputs"]} == {"base", "a", "b"}
    tensors = {row["name"]: row for row in undisturbed["merge_report.json"]["tensors"]}
    assert {entry["tensor"]: entry["checksum"] for entry in entries[1:]} == {
        name: row["checksum"] for name, row in tensors.items()
    }
    assert all(entry["norm"] == tensors[entry["tensor"]]["norm"] for entry in entries[1:])
    assert json.loads((interrupted / "journal.jsonl").read_text().splitlines()[1])["check"]
