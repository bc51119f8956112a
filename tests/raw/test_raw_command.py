"""`mergekit pytorch` as a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from raw_samples import network, numbers, recipe, result, write

from mergekit.cli.main import commands

SOURCES = Path(__file__).parents[2] / "src"
START = "import sys; sys.argv[0] = 'mergekit-pytorch'; from mergekit.cli.main import main_pytorch; main_pytorch()"


def spawn(*words, seed="0"):
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONHASHSEED": seed, "NO_COLOR": "1"}
    line = [sys.executable, "-c", START, *map(str, words)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)


def run(*words):
    return CliRunner().invoke(commands, ["pytorch", *map(str, words)])


@pytest.fixture
def bench(tmp_path):
    """Two checkpoints with an extra tensor each, and `raw.yml`."""
    files = [write(tmp_path / f"{name}.pt", {**network(1), f"only.{name}": numbers(1, 2)}) for name in "ab"]
    (tmp_path / "raw.yml").write_text(recipe("linear", files))
    return tmp_path


def test_the_command(bench):
    done = spawn(bench / "raw.yml", bench / "out", "-u")
    assert done.returncode == 0, done.stderr
    assert "note: 2 tensors are not in all checkpoints and merged from the rest: `only.a`, `only.b`" in done.stderr
    assert done.stdout.splitlines()[0].split()[:2] == ["tensors", "6"]
    assert torch.equal(result(bench / "out")["only.b"], numbers(1, 2))


def test_the_bytes_do_not_depend_on_the_hash_seed(bench):
    for seed in "012":
        assert spawn(bench / "raw.yml", bench / f"{seed}.safetensors", "-u", seed=seed).returncode == 0
    assert len({(bench / f"{seed}.safetensors").read_bytes() for seed in "012"}) == 1


@pytest.mark.parametrize(
    ("change", "flags", "code"),
    [
        ("", (), 4),
        ("", ("-u",), 0),
        ("", ("--tensor-intersection",), 0),
        ("merge_method: ties\n", ("-u",), 3),
        ("", ("-u", "--no-safe-serialization"), 2),
        ("", ("-u", "--max-memory", "1MB"), 7),
        ("", ("-u", "--lazy-unpickle", "--low-cpu-memory", "--trust-remote-code", "--safe-serialization"), 0),
    ],
)
def test_exit_codes(bench, change, flags, code):
    text = (bench / "raw.yml").read_text()
    (bench / "raw.yml").write_text(change + text.partition("\n")[2] if change else text)
    done = run(bench / "raw.yml", bench / "out", *flags)
    assert done.exit_code == code, done.output
    assert (bench / "out").exists() == (code == 0)


def test_an_occupied_output(bench):
    (bench / "out").mkdir()
    (bench / "out" / "note.txt").write_text("mine")
    assert run(bench / "raw.yml", bench / "out", "-u").exit_code == 5
    assert run(bench / "raw.yml", bench / "out", "-u", "--overwrite").exit_code == 5
    assert (bench / "out" / "note.txt").read_text() == "mine"


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_a_plan_writes_nothing(bench, out):
    before = {file.name for file in bench.iterdir()}
    done = run(bench / "raw.yml", bench / out, "-i", "--plan")
    assert done.exit_code == 0
    assert f"{bench / out} (not written)" in done.output
    assert {file.name for file in bench.iterdir()} == before


def test_a_plan_in_json(bench):
    done = CliRunner().invoke(
        commands, ["pytorch", str(bench / "raw.yml"), str(bench / "out"), "-i", "--plan", "--json"]
    )
    plan = json.loads(done.stdout)["plan"]
    assert [tensor["name"] for tensor in plan["tensors"]] == list(network(1))
    assert plan["tensors"][0] == {"name": "conv.weight", "dtype": "F32", "shape": [4, 3, 3, 3], "models": [0, 1]}
    assert [entry["tensors"] for entry in plan["left_over"]] == [["only.a"], ["only.b"]]
    assert plan["bytes_written"] == sum(4 * tensor.numel() for tensor in network(1).values())


def test_errors_in_json(bench):
    (bench / "raw.yml").write_text("merge_method: linear\nmodles: [{model: a.pt}]\n")
    done = CliRunner().invoke(commands, ["pytorch", str(bench / "raw.yml"), str(bench / "out"), "--json"])
    failure = json.loads(done.stdout)
    assert failure["exit_code"] == 3
    mistake = next(each for each in failure["error"]["problems"] if "modles" in each["what"])
    assert (mistake["line"], mistake["hint"]) == (2, "`models`")


def test_both_flags(bench):
    done = run(bench / "raw.yml", bench / "out", "-u", "-i")
    assert "`--tensor-union` has no effect" in done.output
    assert result(bench / "out").keys() == network(1).keys()


def test_integers_of_the_base(bench):
    files = [write(bench / f"{n}.bin", {"w": numbers(n, 2), "steps": torch.tensor(n)}) for n in (1, 2)]
    (bench / "raw.yml").write_text(recipe("linear", files))
    assert run(bench / "raw.yml", bench / "out").exit_code == 4
    assert run(bench / "raw.yml", bench / "out", "--integers", "base").exit_code == 0
    assert result(bench / "out")["steps"] == 1


def test_a_plan_loads_no_heavy_library(bench):
    """Pickles are read without torch."""
    probe = "import sys; sys.argv = sys.argv[:1] + sys.argv[2:]; from mergekit.cli.main import main_pytorch\n"
    probe += "try: main_pytorch()\nfinally: print(sorted({'torch', 'transformers', 'rich'} & sys.modules.keys()))"
    line = [sys.executable, "-c", probe, "x", bench / "raw.yml", bench / "out", "-u", "--plan"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
