"""`mergekit extract-lora` and `mergekit merge-adapters` as commands."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mergekit.cli.main import commands

ROOT = Path(__file__).parents[2]
START = "import sys; sys.argv[0] = 'mergekit-extract-lora'; from mergekit.cli.main import main_extract_lora as m; m()"


def run(*words):
    return CliRunner().invoke(commands, list(map(str, words)))


def answer(*words):
    done = run(*words, "--json")
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Two trained models and an adapter of each."""
    for name in ("base", "de", "es"):
        shutil.copytree(ROOT / "examples" / "models" / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapters(*names):
    for name in names:
        done = run("extract-lora", name, "base", f"{name}-lora", "--max-rank", 4, "-i", "self_attn", "-i", "mlp")
        assert done.exit_code == 0, done.stderr


def test_extract_lora_as_a_process(bench):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    line = [
        sys.executable,
        "-c",
        START,
        "--model",
        "de",
        "--base-model",
        "base",
        "--out-path",
        "out",
        "--max-rank",
        "3",
    ]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "mlp             12      3" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["output", "out"]
    card = (bench / "out" / "README.md").read_text()
    assert "mergekit-extract-lora --model de --base-model base --out-path out --max-rank 3" in card


@pytest.mark.parametrize(
    "words",
    [
        ("de", "base", "out"),
        ("--model", "de", "base", "out"),
        ("--out-path", "out", "de", "base"),
        ("out", "--model", "de", "--base-model", "base"),
    ],
)
def test_models_by_flag_or_by_position(words, bench):
    code, said = answer("extract-lora", *words, "--plan")
    assert code == 0
    assert (said["out"], said["plan"]["model"], said["plan"]["base"]) == ("out", "de", "base")
    assert not (bench / "out").exists()


@pytest.mark.parametrize("words", [("de", "base"), ("de", "base", "out", "more"), ()])
def test_too_few_or_too_many(words, bench):
    code, said = answer("extract-lora", *words)
    assert code == 2
    assert said["error"]["message"].startswith("expected --model, --base-model, --out-path, got")
    assert run("extract-lora", *words).exit_code == 2


def test_the_plan_lists_modules(bench):
    code, said = answer("extract-lora", "de", "base", "out", "--plan", "-e", "mlp")
    assert code == 0
    forms = {entry["module"]: entry["form"] for entry in said["plan"]["modules"]}
    assert forms["model.embed_tokens"] == "vocabulary"
    assert forms["model.layers.0.self_attn.q_proj"] == "linear"
    assert forms["model.norm"] == "whole"
    [left] = said["plan"]["left_out"]
    assert (left["reason"], len(left["tensors"])) == ("they are excluded", 12)
    assert "16 modules, to rank 128 or less" in run("extract-lora", "de", "base", "out", "--plan", "-e", "mlp").stdout


def test_json_and_tables(bench):
    code, said = answer("extract-lora", "de", "base", "out", "--check", "--modules", "--energy", 0.5)
    assert code == 0
    assert said["report"]["check"]["relative_error"] == pytest.approx(
        said["report"]["totals"]["relative_error"], rel=1e-3
    )
    assert len(said["report"]["modules"]) == 38
    done = run("extract-lora", "de", "base", "out", "--overwrite", "--modules", "--energy", 0.5)
    assert "model.layers.3.mlp.down_proj" in done.stdout
    assert run("extract-lora", "de", "base", "out", "--overwrite", "--quiet").stdout == ""


def test_flags_of_other_extractors_are_noted(bench):
    done = run("extract-lora", "de", "base", "out", "--plan", "--cuda", "--no-lazy-unpickle", "--multi-gpu")
    assert done.exit_code == 0
    assert {line for line in done.stderr.splitlines() if "has no effect" in line} == {
        "note: `--cuda` has no effect: adapters are computed on the CPU",
        "note: `--lazy-unpickle` has no effect: reading is always lazy",
        "note: `--multi-gpu` has no effect: the CPU computes",
    }


WRONG = {
    "a regular expression": (("-i", "(", "de", "base", "out"), 2, "missing ), unterminated subpattern"),
    "an energy": (("--energy", "1.5", "de", "base", "out"), 2, "1.5 is not in the range"),
    "no such model": (("nowhere/at/all", "base", "out"), 4, "nowhere"),
    "the same model": (("base", "base", "out"), 4, "the models do not differ"),
    "an output that is there": (("de", "base", "es"), 5, "not empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_have_their_exit_codes(case, bench):
    words, code, text = WRONG[case]
    done = run("extract-lora", *words)
    assert done.exit_code == code
    assert text in done.stderr
    found, said = answer("extract-lora", *words)
    assert (found, said["ok"]) == (code, False)
    assert text in said["error"]["message"]


def test_what_is_said_about_no_module_is_told(bench):
    said = ("--save-module", "o_proj", "--save-module", "norn", "-i", "mlp|attn", "-i", "MLP", "-e", "layers.9")
    done = run("extract-lora", "de", "base", "out", "--plan", *said)
    assert done.exit_code == 0
    assert [line.split("`")[1] for line in done.stderr.splitlines() if "has no effect" in line] == [
        "--save-module norn",
        "--include-regex MLP",
        "--exclude-regex layers.9",
    ]


def test_merge_adapters_takes_as_many_threads_as_it_is_told(bench):
    adapters("de", "es")
    for threads in (1, 3):
        assert run("merge-adapters", "de-lora", "es-lora", f"out{threads}", "-j", threads).exit_code == 0
    one, three = ((bench / f"out{n}" / "adapter_model.safetensors").read_bytes() for n in (1, 3))
    assert one == three
    assert run("merge-adapters", "--version").output.startswith("mergekit ")


def test_merge_adapters_by_name(bench):
    adapters("de", "es")
    code, said = answer("merge-adapters", "de-lora", "es-lora", "out", "--weight", 0.25, "--weight", 0.75)
    assert code == 0
    assert said["report"]["exact"]
    assert said["report"]["totals"]["rank"] == [8, 8]
    written = (bench / "out" / "mergekit_config.yml").read_text()
    assert written == (
        "merge_method: task_arithmetic\nmodels:\n- model: de-lora\n  parameters:\n    weight: 0.25\n"
        "- model: es-lora\n  parameters:\n    weight: 0.75\n"
    )
    (bench / "recipe.yml").write_text(written)
    done = run("merge-adapters", "recipe.yml", "again", "--rank", 2)
    assert done.exit_code == 0
    assert "energy   at least" in done.stdout
    first, again = (json.loads((bench / n / "adapter_config.json").read_text()) for n in ("out", "again"))
    assert (first["r"], again["r"], again["base_model_name_or_path"]) == (8, 2, "base")


def test_merge_adapters_says_what_is_in_the_core_space(bench):
    adapters("de", "es")
    done = run("merge-adapters", "de-lora", "es-lora", "out", "--method", "ties", "-p", "density=0.5", "--plan")
    assert done.exit_code == 0
    assert "ties, in the core space" in done.stdout
    assert "at most 8" in done.stdout
    assert "the result is not that of a merge of whole models" in done.stderr
    assert not (bench / "out").exists()


def test_an_adapter_that_is_not_one(bench):
    adapters("de")
    code, said = answer("merge-adapters", "de-lora", "es", "out")
    assert code == 3
    assert "no adapter_config.json" in said["error"]["message"]


USAGE = {
    "weights": (("--weight", 1, "--weight", 2, "--weight", 3), "3 weights for 2 adapters"),
    "a parameter without a value": (("-p", "density"), "expected NAME=VALUE"),
    "a parameter that is no YAML": (("-p", "density=[1"), "is no value"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_line(case, bench):
    words, text = USAGE[case]
    code, said = answer("merge-adapters", "de-lora", "es-lora", "out", *words)
    assert code == 2
    assert text in said["error"]["message"]
    assert run("merge-adapters", "de-lora", "es-lora", "out", *words).exit_code == 2


def test_flags_for_adapters_and_a_recipe(bench):
    (bench / "recipe.yml").write_text("merge_method: ties\n")
    code, said = answer("merge-adapters", "recipe.yml", "out", "--weight", 1)
    assert code == 2
    assert said["error"]["message"] == "`--weight` is for adapters on the command line, and recipe.yml is a recipe"


@pytest.mark.parametrize("command", ["extract-lora", "merge-adapters"])
def test_help_needs_nothing_heavy(command):
    text = (
        "import sys\nfrom click.testing import CliRunner\nfrom mergekit.cli.main import commands\n"
        f"print(CliRunner().invoke(commands, [{command!r}, '--help']).output)\n"
        "assert not {'numpy', 'torch', 'numba', 'peft'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout
