"""Flags of ``mergekit yaml``: all are accepted, and mean what they say."""

import json

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from mergekit.cli.main import commands

WITHOUT_EFFECT = [
    "--allow-crimes",
    "--trust-remote-code",
    "--low-cpu-memory",
    "--lazy-unpickle",
    "--async-write",
    "--clone-tensors",
]
VALUED = [
    ("--lora-merge-cache", "x"),
    ("--lora-merge-dtype", "x"),
    ("--write-threads", "3"),
]
TWINS = [
    "cuda",
    "read-to-gpu",
    "multi-gpu",
    "unsafe-truncate-embeddings",
    "copy-tokenizer",
    "write-model-card",
    "quiet",
]


@pytest.mark.parametrize(
    "flags",
    [
        *([flag] for flag in WITHOUT_EFFECT),
        *([flag.replace("--", "--no-", 1)] for flag in WITHOUT_EFFECT),
        *VALUED,
        ["--safe-serialization"],
    ],
    ids=" ".join,
)
def test_flags_without_effect_are_accepted_and_noted_once(bench, flags):
    result = bench.run(*flags)
    assert result.exit_code == 0
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"note: `{flags[0].replace('--no-', '--', 1)}` has no effect: ")


def test_a_repeated_flag_is_noted_once(bench):
    result = bench.run("--async-write", "--no-async-write", "--async-write", "--lazy-unpickle")
    assert [line.split("`")[1] for line in result.stderr.splitlines()] == ["--async-write", "--lazy-unpickle"]


@pytest.mark.parametrize(
    "flags",
    [
        *([f"--no-{name}"] for name in TWINS),
        *([f"--{name}"] for name in TWINS[1:]),
        ["-j", "1"],
        ["--num-threads", "2"],
        ["--out-shard-size", "5B"],
        ["--random-seed", "7"],
        ["-v"],
        ["-vv"],
        ["--max-memory", "2GB"],
        ["--overwrite"],
        ["--strict"],
    ],
    ids=" ".join,
)
def test_flags_with_meaning_are_accepted(bench, flags):
    result = bench.run(*flags)
    assert (result.exit_code, "no effect" in result.stderr) == (0, False)
    assert (bench.out / "model.safetensors").is_file()


def test_pickles_are_refused(bench):
    result = bench.run("--no-safe-serialization")
    assert result.exit_code == 2
    assert "pickles are not written" in result.stderr
    assert not bench.out.exists()


@pytest.mark.parametrize(("size", "files"), [("0", 1), ("1MB", 1), ("4k", 7), ("1", 21)])
def test_shard_size_is_in_bytes(bench, size, files):
    assert bench.run("--out-shard-size", size).exit_code == 0
    shards = list(bench.out.glob("*.safetensors"))
    assert len(shards) == files
    assert (bench.out / "model.safetensors.index.json").is_file() == (files > 1)
    if size == "4k":
        assert all(sum(tensor.nbytes for tensor in load_file(shard).values()) <= 4000 for shard in shards)


@pytest.mark.parametrize(
    "flags", [["--out-shard-size", "5X"], ["--max-memory", "0"], ["-j", "0"], ["--random-seed", "x"]]
)
def test_values_that_make_no_sense_are_usage_errors(bench, flags):
    result = bench.run(*flags)
    assert result.exit_code == 2
    assert f"Invalid value for '{flags[0]}'" in result.stderr
    assert not bench.out.exists()


def test_tokenizer_files_and_model_card_can_be_left_out(bench):
    assert bench.run().exit_code == 0
    everything = {file.name for file in bench.out.iterdir()}
    assert bench.run("--overwrite", "--no-copy-tokenizer", "--no-write-model-card").exit_code == 0
    assert everything - {file.name for file in bench.out.iterdir()} == {"tokenizer_config.json", "README.md"}


def test_vocabularies_are_cut_only_on_request(bench):
    bench.write("a", "c")
    assert bench.run().exit_code == 4
    assert bench.run("--unsafe-truncate-embeddings").exit_code == 0
    assert load_file(bench.out / "model.safetensors")["lm_head.weight"].shape == (28, 16)


def test_memory_is_limited(bench):
    result = bench.run("--max-memory", "1MB")
    assert result.exit_code == 7
    assert "at least" in result.stderr


def test_threads_and_seed_reach_the_merge(bench):
    result = bench.run("-j", "1", "-v", "--random-seed", "7")
    assert "note: linear: models 2, tensors 21, files 1, threads 1; reads " in result.stderr
    assert json.loads((bench.out / "merge_report.json").read_text())["seed"] == 7


def test_a_device_wins_over_cuda(bench):
    result = bench.run("--device", "cpu", "--cuda")
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flag", "device"), [("--cuda", "cuda"), ("--gpu-rich", "cuda:*"), ("--gpu-rich", "cuda"), ("--multi-gpu", "auto")]
)
def test_cuda_is_a_device(bench, flag, device):
    asked, named = bench.run(flag), bench.run("--device", device, "--overwrite")
    assert asked.exit_code in (0, 8)
    assert (asked.exit_code, asked.stderr) == (named.exit_code, named.stderr)


def test_no_accelerator_is_said(bench, monkeypatch):
    monkeypatch.setattr("mergekit.engine.devices.accelerator", lambda: None)
    said = "note: torch can use no accelerator here: compiled kernels on the CPU compute\n"
    for command in ("merge", "check", "plan"):
        for flags in (["--device", "auto"], ["--multi-gpu"]):
            words = [command, str(bench.recipe), str(bench.out), "--overwrite", *flags]
            result = CliRunner().invoke(commands, words)
            assert (result.exit_code, result.stderr.count(said)) == (0, 1), (command, flags)
    assert json.loads((bench.out / "merge_report.json").read_text())["device"]["name"] == "kernels"


def test_keeping_needs_a_device(bench):
    assert "operands are kept on no device" in bench.run("--read-to-gpu").stderr
    assert bench.run("--read-to-gpu", "--device", "cpu", "--overwrite").stderr == ""


def test_an_absent_device_is_said_with_everything_else(bench):
    assert bench.run("--device", "abacus").exit_code == 8
    bench.recipe.write_text("merge_method: nonsense")
    merged = bench.run("--device", "abacus")
    checked = CliRunner().invoke(commands, ["check", str(bench.recipe), "--device", "abacus"])
    assert merged.stderr == checked.stderr
    assert "unknown device `abacus`" in merged.stderr
    assert "nonsense" in merged.stderr


def test_several_devices_and_what_computed_are_in_the_report(bench):
    assert bench.run("--device", "cpu, cpu").exit_code == 0
    found = json.loads((bench.out / "merge_report.json").read_text())["device"]
    assert (found["name"], found["devices"]) == ("torch cpu", ["cpu", "cpu"])
    assert bench.run("--device", "kernels", "--overwrite").exit_code == 0
    assert json.loads((bench.out / "merge_report.json").read_text())["device"]["name"] == "kernels"


def test_unknown_devices(bench):
    result = bench.run("--device", "abacus")
    assert result.exit_code == 8
    assert "error: unknown device `abacus`\n" in result.stderr
    assert not bench.out.exists()


def test_occupied_folders_are_replaced_only_on_request(bench):
    bench.out.mkdir()
    (bench.out / "precious").touch()
    assert bench.run().exit_code == 5
    assert (bench.out / "precious").exists()
    assert bench.run("--overwrite").exit_code == 5, "not a model"
    (bench.out / "config.json").write_text("{}")
    assert bench.run("--overwrite").exit_code == 0
    assert not (bench.out / "precious").exists()


def test_the_recipe_can_come_from_standard_input(bench):
    words = ["merge", "-", str(bench.out)]
    assert CliRunner().invoke(commands, words, input=bench.recipe.read_text()).exit_code == 0
    again = CliRunner().invoke(commands, [*words, "--overwrite"], input="merge_method: linear\nmodles: []")
    assert again.exit_code == 3
    assert "(<stdin>:2)" in again.stderr
