"""What stands in the way of a merge is known before a weight is read: each thing alone, and all at once."""

import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from tiny_checkpoints import recipe

from mergekit import MergeOptions, merge_models
from mergekit.checkpoint.output import output_folder
from mergekit.cli.main import commands
from mergekit.errors import (
    BudgetError,
    DeviceError,
    IncompatibleModelsError,
    MissingTensorError,
    OutputError,
    RecipeError,
    SeveralProblemsError,
)
from mergekit.merging import JobOptions
from mergekit.plan import PlanOptions
from mergekit.preview import Job, check_merge, space
from mergekit.raw import merge_raw


def job(text, out=None, *, device=None, overwrite=False, **planning):
    return Job(text, "merge.yml", out, PlanOptions(**planning), device, overwrite)


def kinds(found):
    return [type(error) for error in found.errors]


def halves(models, **settings):
    return recipe("linear", [(model, {"weight": 0.5}) for model in models], **settings)


# One thing at a time


def test_nothing_stands_in_the_way(models, tmp_path):
    found = check_merge(job(halves(models), tmp_path / "deep" / "out"))
    assert found.errors == ()
    plan = found.result()
    assert found.attempt.written == sum(shard.nbytes for shard in plan.shards)
    (disk,) = found.spaces
    assert disk.folder == tmp_path.resolve()
    assert found.attempt.written < disk.needed < found.attempt.written + 100_000
    assert not (tmp_path / "deep").exists()


def test_mistakes_in_the_recipe(models):
    found = check_merge(job(halves(models, dtype="float17")))
    assert kinds(found) == [RecipeError]
    with pytest.raises(RecipeError):
        found.result()


def test_models_of_other_sizes(models, hollow):
    found = check_merge(job(halves([models[0], hollow("wide", width=64)])))
    assert kinds(found) == [IncompatibleModelsError]


def test_models_of_other_heights(models, hollow):
    found = check_merge(job(halves([models[0], hollow("tall", layers=6)])))
    assert kinds(found) == [IncompatibleModelsError]
    assert "4 layers" in str(found.errors[0])


def test_missing_tensors(models, hollow):
    untied, tied = halves([models[0], hollow("tied", tied=True)]), halves([hollow("own", tied=True), models[0]])
    assert kinds(check_merge(job(untied))) == kinds(check_merge(job(tied))) == []
    config = models[1] / "model.safetensors"
    config.write_bytes(config.read_bytes().replace(b"mlp.up_proj.weight", b"mlp.up_pr0j.weight"))
    assert kinds(check_merge(job(halves(models)))) == [MissingTensorError]


def test_an_unknown_device(models):
    found = check_merge(job(halves(models), device="abacus"))
    assert kinds(found) == [DeviceError]
    assert found.errors[0].exit_code == 8


def test_too_little_memory(models):
    found = check_merge(job(halves(models), max_memory=1 << 20))
    assert kinds(found) == [BudgetError]
    assert found.attempt.written is not None


def test_warnings_are_errors_if_strict(models):
    text = halves(models, parameters={"int8_mask": True})
    assert kinds(check_merge(job(text))) == []
    assert kinds(check_merge(job(text, strict=True))) == [RecipeError]


def test_an_output_that_is_there(models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").touch()
    assert kinds(check_merge(job(halves(models), out))) == [OutputError]
    assert kinds(check_merge(job(halves(models), out, overwrite=True))) == []


def test_an_output_that_is_an_input(models):
    found = check_merge(job(halves(models), models[0], overwrite=True))
    assert kinds(found) == [OutputError]
    assert f"replace one of the models to be merged, {models[0]}" in str(found.errors[0])


def test_an_output_inside_of_a_file(models, tmp_path):
    (tmp_path / "file").touch()
    found = check_merge(job(halves(models), tmp_path / "file" / "out"))
    assert kinds(found) == [OutputError]
    assert found.errors[0].problem.place == str(tmp_path / "file")


def test_an_output_that_another_process_writes(models, tmp_path):
    with output_folder(tmp_path / "out", overwrite=False):
        (error,) = check_merge(job(halves(models), tmp_path / "out")).errors
        assert "another process is writing this output" in str(error)
    assert check_merge(job(halves(models), tmp_path / "out")).errors == ()


def test_a_folder_in_the_way_that_is_somebody_s(models, tmp_path):
    own = tmp_path / "out.partial"
    own.mkdir()
    assert check_merge(job(halves(models), tmp_path / "out")).errors == ()
    (own / "letter.txt").touch()
    (error,) = check_merge(job(halves(models), tmp_path / "out")).errors
    assert "is not from an interrupted merge" in str(error)


def test_a_folder_that_nothing_may_be_written_to(models, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(space.os, "access", lambda folder, mode: asked.append(folder) or False)
    found = check_merge(job(halves(models), tmp_path / "out"))
    assert kinds(found) == [OutputError]
    assert asked == [tmp_path.resolve()]


# Room


def test_a_full_disk_is_met_at_once(large, small_disk):
    found = check_merge(job(halves(large), small_disk / "out"))
    assert kinds(found) == [OutputError]
    assert "are needed on this disk, and 52" in str(found.errors[0])
    assert kinds(check_merge(job(halves(large), small_disk / "out"), room=False)) == []
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("flags", [(), ("--no-check",)])
def test_a_merge_onto_a_full_disk_fails_cleanly(flags, large, small_disk, tmp_path):
    (tmp_path / "merge.yml").write_text(halves(large))
    words = ["yaml", str(tmp_path / "merge.yml"), str(small_disk / "out"), *flags]
    result = CliRunner().invoke(commands, words)
    assert result.exit_code == 5
    assert ("are needed on this disk" in result.stderr) == (not flags)
    assert ("o space for" in result.stderr) == bool(flags)
    assert not (small_disk / "out").exists()
    assert not list(small_disk.rglob("model*")) or flags


def test_other_merges_meet_a_full_disk_as_well(large, small_disk):
    raw = recipe("linear", [model / "model.safetensors" for model in large])
    for room, told in ((True, "are needed on this disk"), (False, "o space for")):
        with pytest.raises(OutputError, match=told):
            merge_raw(raw, small_disk / "out", options=JobOptions(room=room))
        with pytest.raises(OutputError, match=told):
            merge_models(halves(large), small_disk / "out", options=MergeOptions(no_check=not room))


def test_what_an_interrupted_merge_has_taken_is_not_needed_again(models, tmp_path):
    out = tmp_path / "out"
    before = check_merge(job(halves(models), out)).spaces[0].needed
    held = tmp_path / "out.partial" / "output" / "model.safetensors"
    held.parent.mkdir(parents=True)
    held.write_bytes(b"x" * 40_960)
    assert check_merge(job(halves(models), out)).spaces[0].needed == before - 40_960
    held.write_bytes(b"x" * 10_000_000)
    assert check_merge(job(halves(models), out)).spaces[0].needed == 0


def test_what_is_replaced_stays_until_the_end(models, tmp_path):
    out = tmp_path / "out"
    fresh = check_merge(job(halves(models), out)).spaces[0].needed
    out.mkdir()
    (out / "config.json").write_bytes(b" " * 1_000_000)
    assert check_merge(job(halves(models), out, overwrite=True)).spaces[0].needed == fresh


def test_other_files_need_room_too(models, tmp_path):
    out = tmp_path / "out"
    before = check_merge(job(halves(models), out)).spaces[0].needed
    (models[0] / "notes.txt").write_bytes(b"x" * 12_345)
    assert check_merge(job(halves(models), out)).spaces[0].needed == before + 12_345


# All at once


def test_everything_is_told_at_once(large, hollow, small_disk):
    wide = hollow("wide", width=1024, inner=2048, layers=12, rows=8192)
    text = halves([large[0], wide], parameters={"normalize": "perhaps"})
    found = check_merge(job(text, small_disk / "out", device="abacus"))
    assert kinds(found) == [RecipeError, IncompatibleModelsError, DeviceError, OutputError]
    with pytest.raises(SeveralProblemsError, match=r"^4 problems") as caught:
        found.result()
    assert caught.value.exit_code == 3
    begins = [problem.what.split()[0] for problem in caught.value.problems]
    assert begins == ["`normalize`:", "models", "unknown", "about"]
    assert len(caught.value.errors) == 4


def test_a_merge_tells_the_same(models, hollow, tmp_path):
    (tmp_path / "merge.yml").write_text(halves([models[0], hollow("wide", width=64)]))
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    results = [
        CliRunner().invoke(commands, [command, str(tmp_path / "merge.yml"), str(out), "--device", "abacus"])
        for command in ("check", "yaml", "plan")
    ]
    assert [result.exit_code for result in results] == [4, 4, 4]
    assert len({result.stderr for result in results}) == 1
    assert "error: 3 problems" in results[0].stderr
    assert [file.name for file in out.iterdir()] == ["precious"]


# Size

GIANT = {"layers": 80, "width": 8192, "inner": 28672, "rows": 128256}
PEAK = """
import re, sys
from pathlib import Path
from mergekit.preview import Job, check_merge
plan = check_merge(Job(Path(sys.argv[1]).read_text())).result()
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(len(plan.tasks), int(peak[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="how much a process has taken is asked in the way of Linux")
def test_models_of_seventy_billion_parameters_take_little_memory(hollow, tmp_path):
    text = recipe("ties", [hollow("a", **GIANT), hollow("b", **GIANT)], base_model=str(hollow("base", **GIANT)))
    (tmp_path / "merge.yml").write_text(text)
    line = [sys.executable, "-c", PEAK, str(tmp_path / "merge.yml")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    tensors, megabytes = map(int, done.stdout.split())
    assert tensors == 80 * 9 + 3
    assert megabytes < 150


def test_a_job_without_an_output_is_looked_at(models):
    found = check_merge(replace(job(halves(models)), out=None))
    assert (found.errors, found.spaces) == ((), ())
