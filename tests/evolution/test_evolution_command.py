"""`mergekit-evolve` on the example models, which were really trained."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from mergekit.cli.main import commands

ROOT = Path(__file__).parents[2]
LANGUAGES = ("de", "py")
TEXT = {"bytes": 600, "window": 150}


@pytest.fixture(autouse=True)
def _at_the_top(monkeypatch):
    monkeypatch.chdir(ROOT)


def genome(method="task_arithmetic", models=LANGUAGES, **others):
    named = [f"examples/models/{name}" for name in models]
    return {"merge_method": method, "base_model": "examples/models/base", "models": named, **others}


def texts(names=LANGUAGES, **others):
    return [{"perplexity": f"examples/text/{name}.txt", **TEXT, **others} for name in names]


def write(file, **configuration):
    file.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    return file


def run(*arguments, code=0):
    done = CliRunner().invoke(commands, [*map(str, arguments), "--num-threads", "1", "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def evolve(file, storage, *arguments, code=0):
    return run("evolve", file, "--storage-path", storage, *arguments, code=code)


def trials_of(storage):
    """How many trials are over, as the database has them."""
    try:
        with sqlite3.connect(f"file:{storage / 'search.db'}?mode=ro", uri=True) as database:
            return database.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


PARENT = """
import os, sys
import cmaes, optuna, mergekit.evolution.trials
from transformers import AutoTokenizer, LlamaForCausalLM
from mergekit.cli.main import commands
while input():
    child = os.fork()
    if not child:
        commands(sys.argv[1:])
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@contextmanager
def searching(file, storage, *arguments):
    """A process that has imported everything, and begins a search in a process of its own for every line it reads."""
    line = [sys.executable, "-c", PARENT, "evolve", file, "--storage-path", storage, *arguments, "--num-threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([str(part) for part in line], cwd=ROOT, env=environment, **pipes) as process:
        yield process
        process.stdin.write("\n")


def kill_after(trials, parent, storage):
    """Begin a search, and kill it when so many trials are over."""
    parent.stdin.write("begin\n")
    parent.stdin.flush()
    child = int(parent.stdout.readline())
    while trials_of(storage) < trials:
        assert Path("/proc", str(child)).exists()
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    assert int(parent.stdout.readline()) == signal.SIGKILL


def without_times(record):
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in record["trials"]]


def test_it_beats_the_best_uniform_weight_though_it_is_killed_twice(tmp_path, capsys):
    file = write(tmp_path / "evolve.yml", genome=genome(), objectives=texts())
    models = [{"model": name} for name in genome()["models"]]
    recipe = write(tmp_path / "uniform.yml", **{**genome(), "dtype": "bfloat16", "models": models})
    objectives = [part for name in LANGUAGES for part in ("--objective", f"perplexity:examples/text/{name}.txt")]
    sizes = ("--bytes", TEXT["bytes"], "--window", TEXT["window"])
    budget = ("--max-fevals", 16, "--seed", 1)
    with searching(file, tmp_path / "killed", *budget) as parent:
        uniform = run("sweep", recipe, "--set", "parameters.weight=0.5:0.75:6", *objectives, *sizes)
        for trials in (4, 10):
            kill_after(trials, parent, tmp_path / "killed")
    best_uniform = max(point["score"] for point in uniform["points"])
    found = evolve(file, tmp_path / "killed", *budget)
    best = max(trial["score"] for trial in found["trials"])
    with capsys.disabled():
        print(f"\nbest uniform weight {best_uniform:.3f}, first {found['trials'][0]['score']:.3f}, found {best:.3f}")
    assert len(found["trials"]) == 16
    assert best > best_uniform
    whole = evolve(file, tmp_path / "whole", *budget, "--no-save-final-model", "--plots", "none")
    assert without_times(whole) == without_times(found)
    assert whole["recipe"] == found["recipe"]
    assert not list((tmp_path / "whole").glob("*.png"))
    check_records(tmp_path / "killed", found)


def check_records(storage, found):
    best = yaml.safe_load((storage / "best_config.yaml").read_text(encoding="utf-8"))
    assert best["base_model"] == "examples/models/base"
    assert best == yaml.safe_load(found["recipe"])
    assert json.loads((storage / "history.json").read_text(encoding="utf-8"))["trials"] == found["trials"]
    with (storage / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["score"]) for row in rows] == [trial["score"] for trial in found["trials"]]
    assert {f"weight {name}" for name in LANGUAGES} <= rows[0].keys()
    for name in ("progress.png", "importance.png"):
        assert (storage / name).read_bytes().startswith(b"\x89PNG")
    run("yaml", storage / "best_config.yaml", storage / "again")
    weights = [(storage / name / "model.safetensors").read_bytes() for name in ("again", "final_model")]
    assert weights[0] == weights[1]


SCORES = """
import os

def norm(candidate):
    return candidate.model.model.norm.weight.detach().float().norm()

def always(candidate):
    raise RuntimeError("no luck")
"""


@pytest.fixture
def scores(tmp_path):
    file = tmp_path / "scores.py"
    file.write_text(SCORES, encoding="utf-8")
    return file


def test_a_function_sees_the_model_and_a_command_the_folder(tmp_path, scores):
    count = 'python3 -c \'import sys, os; print("size", os.path.getsize(sys.argv[1] + "/model.safetensors"))\''
    objectives = [
        {"call": f"{scores}:norm", "name": "norm", "weight": 2},
        {"command": count, "name": "size", "maximize": False, "weight": 0.001},
    ]
    file = write(tmp_path / "evolve.yml", genome=genome(models=("de", "es")), objectives=objectives)
    found = evolve(file, tmp_path / "ws", "--max-fevals", 3, "--allow-code", "--no-save-final-model", "--plots", "svg")
    for trial in found["trials"]:
        assert trial["failure"] is None
        measured = trial["objectives"]
        assert trial["score"] == pytest.approx(2 * measured["norm"] - 0.001 * measured["size"])
        assert measured["size"] > 1_400_000
    assert not list(Path("/dev/shm").glob(f"mergekit-candidate-*-{os.getpid()}-*"))
    assert "<svg" in (tmp_path / "ws" / "progress.svg").read_text(encoding="utf-8")
    assert "runs code" in evolve(file, tmp_path / "other", code=3)["error"]["message"]


@pytest.mark.parametrize(
    ("objective", "flags", "code", "said"),
    [
        ({"call": "{scores}:always"}, (), 4, "no luck"),
        ({"command": "true"}, (), 4, "printed nothing"),
        ({"command": "true"}, ("--halving",), 4, "can only be measured as a whole"),
        ({"perplexity": "no.txt"}, (), 4, "no.txt cannot be read"),
        ({"call": "{scores}:nothing"}, (), 10, "cannot be loaded"),
        ({"call": "no_such_module:f"}, (), 10, "cannot be loaded"),
    ],
)
def test_objectives_that_do_not_work(tmp_path, scores, objective, flags, code, said):
    own = {kind: what.format(scores=scores) for kind, what in objective.items()}
    file = write(tmp_path / "evolve.yml", genome=genome(models=("de", "es")), objectives=[own])
    found = evolve(file, tmp_path / "ws", "--max-fevals", 2, "--allow-code", *flags, code=code)
    assert said in found["error"]["message"]


def test_what_a_killed_process_left_in_memory_is_swept_away(tmp_path):
    from mergekit.evolution.candidate import memory_folder, sweep_memory

    own = memory_folder(0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-"))
    left.mkdir()
    sweep_memory()
    assert own.is_dir()
    assert not left.exists()
    own.rmdir()


def test_mistakes_on_the_command_line(tmp_path):
    file = write(tmp_path / "evolve.yml", genome=genome(), objectives=texts(), pareto=True)
    ws = tmp_path / "ws"
    assert "vLLM is not used here" in evolve(file, ws, "--vllm", code=4)["error"]["message"]
    assert "one of them" in evolve(file, ws, "--load-in-4bit", "--load-in-8bit", code=2)["error"]["message"]
    assert "CMA-ES searches for one" in evolve(file, ws, "--sampler", "cmaes", code=2)["error"]["message"]
    assert "keeps objectives apart" in evolve(file, ws, "--halving", code=4)["error"]["message"]
    differing = ("--workers", 2, "--num-gpus", 3)
    assert "mean the same" in evolve(file, ws, *differing, code=2)["error"]["message"]
    single = write(tmp_path / "single.yml", genome=genome(), objectives=texts(("de",)), pareto=True)
    assert "`pareto: true` has one objective" in evolve(single, ws, code=4)["error"]["message"]
    assert not ws.exists()


STOP = """
import os, signal

def score(candidate):
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_at_ctrl_c_it_says_what_is_not_lost(tmp_path):
    (tmp_path / "stop.py").write_text(STOP, encoding="utf-8")
    objectives = [{"call": f"{tmp_path / 'stop.py'}:score"}]
    file = write(tmp_path / "evolve.yml", genome=genome(models=("de", "es")), objectives=objectives)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = evolve(file, tmp_path / "ws", "--allow-code", code=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert found["error"]["message"] == "interrupted; the same command continues the search"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_a_device_that_is_not_there_is_no_matter_of_candidates(tmp_path):
    file = write(tmp_path / "evolve.yml", genome=genome(models=("de", "es")), objectives=texts(("de",)))
    found = evolve(file, tmp_path / "ws", "--merge-cuda", code=8)
    assert found["error"]["message"].startswith("device `cuda` is not there")


def test_what_models_are_quantised_to_decides_whether_a_search_goes_on():
    from mergekit.cli.evolve import _deciding
    from mergekit.evolution.candidate import Loading
    from mergekit.evolution.evaluation import RecipeEvaluator

    found = [_deciding(RecipeEvaluator((), Loading(bits=bits)))["quantisation"] for bits in (None, 4, 8)]
    assert found == ["none", "4 bits", "8 bits"]


def test_flags_of_elsewhere_are_accepted(tmp_path):
    file = write(tmp_path / "evolve.yml", genome=genome(models=("de", "es")), objectives=texts(("de",)))
    flags = "--strategy serial --in-memory --no-reshard --num-gpus 1 --no-merge-cuda --allow-crimes --batch-size 2"
    flags += " --no-vllm --sigma0 0.2 --random-seed 3 --no-wandb --no-trust-remote-code --force-population-size 5"
    found = evolve(file, tmp_path / "ws", "--n-iterations", 1, "--no-save-final-model", *flags.split())
    assert len(found["trials"]) == 1


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({names!r}))
from mergekit.cli.main import {entry}
{entry}()
"""


def without(names, entry, *arguments):
    """Run a command in a process in which some packages cannot be imported."""
    line = [sys.executable, "-c", WITHOUT.format(names=names, entry=entry), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_help_and_merges_need_none_of_the_extras(tmp_path):
    names = ("optuna", "cmaes", "torch", "transformers", "lm_eval", "ray", "matplotlib", "sqlalchemy", "datasets")
    done = without(names, "main_evolve", "--help")
    assert (done.returncode, "--max-fevals" in done.stdout) == (0, True), done.stderr
    done = without(names, "main_yaml", "examples/recipes/linear.yml", tmp_path / "out")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "said"), [("optuna", "optuna"), ("torch", "torch"), ("lm_eval", "lm-eval")])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(tmp_path, name, said):
    scored = {"tasks": ["own"]} if name == "lm_eval" else {"objectives": texts()}
    file = write(tmp_path / "evolve.yml", genome=genome(), **scored)
    done = without((name,), "main_evolve", file, "--storage-path", tmp_path / "ws")
    assert done.returncode == 4, done.stderr
    assert f"need {said}, which is not installed" in done.stderr
    assert 'pip install "mergekit[evolve]"' in done.stderr


def test_a_missing_tracker_is_named(tmp_path):
    file = write(tmp_path / "evolve.yml", genome=genome(), objectives=texts())
    done = without(("wandb",), "main_evolve", file, "--storage-path", tmp_path / "ws", "--wandb")
    assert (done.returncode, "pip install wandb" in done.stderr) == (4, True), done.stderr
