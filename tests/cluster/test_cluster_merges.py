"""Merges on a real Ray cluster of two nodes end in the bytes of merges on threads, whatever happens meanwhile."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner
from interrupted import Stopper, assert_done, contents, journal_of, partial_of
from surgery_samples import make_pair
from tiny_checkpoints import (
    fine_tuned,
    llama_config,
    llama_shapes,
    piece,
    random_tensors,
    read_model,
    recipe,
    write_model,
)
from tiny_quantised import quantised_model, settings_of
from two_nodes import NODE

from mergekit.cli.main import commands
from mergekit.errors import CheckpointError, DeviceError, MethodError, NonFiniteError, OutputError
from mergekit.merging import JobOptions, merge_recipe
from mergekit.plan import PlanOptions

SIZES = {"layers": 3, "width": 64, "inner": 96, "rows": 512}
METHODS = '''
import os
import time
from pathlib import Path

from mergekit.methods import merge_method

FACTOR = 0.5


def halved(entries):
    return FACTOR * entries


@merge_method(title="Half of everything")
def half(base, models, *, strength: float = 1.0):
    """Half of the first model's change."""
    return base + strength * halved(models[0] - base)


@merge_method(title="Half, slowly, and seen")
def slowly(base, models, *, folder: str):
    """As half; says on which node. A doomed node begins, and never ends; others go on when it has begun."""
    import ray

    node, doomed = ray.get_runtime_context().get_node_id(), Path(folder, "doomed")
    fate = doomed.read_text() if doomed.is_file() else ""
    until = time.monotonic() + 60
    while fate not in ("", node) and not list(Path(folder).glob(f"{fate} *")) and time.monotonic() < until:
        time.sleep(0.01)
    mark = Path(folder, f"{node} {os.getpid()} {time.monotonic_ns()}")
    mark.touch()
    time.sleep(60 if fate == node else 0.03)
    mark.rename(f"{mark} done")
    return base + halved(models[0] - base)


@merge_method(title="No good")
def failing(base, models):
    """Fails."""
    raise ArithmeticError("no numbers today")
'''


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    config = llama_config(dtype=torch.bfloat16, **SIZES)
    base = random_tensors(llama_shapes(config), 0, torch.bfloat16)
    for seed, name in enumerate(("base", "a", "b")):
        write_model(root / name, fine_tuned(base, seed) if seed else base, config, shards=2 if name == "b" else 1)
    stored, _ = quantised_model("fp8_block", fine_tuned(base, 7))
    write_model(root / "quantised", stored, {**config, **settings_of("fp8_block")}, shards=2)
    adapter(root / "adapter", base)
    (root / "methods.py").write_text(METHODS)
    return root


def adapter(folder, base):
    """Low-rank changes of all query matrices."""
    from safetensors.torch import save_file

    folder.mkdir()
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    factors = {}
    for name, tensor in base.items():
        if "q_proj" in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            down, up = (random_tensors({"": shape}, 3, scale=0.1)[""] for shape in ((4, 64), (tensor.shape[0], 4)))
            factors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save_file(factors, folder / "adapter_model.safetensors")


def recipes(root):
    """Recipes of all kinds of methods, operands and code."""
    base, a, b = (str(root / name) for name in ("base", "a", "b"))
    return {
        "ties": recipe(
            "ties", [(a, {"density": 0.3}), (b, {"density": 0.6})], base_model=base, parameters={"weight": 1}
        ),
        "dare": recipe("dare_linear", [a, b], base_model=base, parameters={"density": 0.5, "weight": 0.7}),
        "slerp": recipe("slerp", [b], base_model=a, parameters={"t": 0.4}),
        "slices": recipe("passthrough", slices=[piece((a, 0, 2)), piece((b, 1, 3))]),
        "code": recipe(f"{root / 'methods.py'}:half", [a], base_model=base, parameters={"strength": 0.5}),
        "adapter": recipe("linear", [(f"{base}+{root / 'adapter'}", {"weight": 0.5}), (b, {"weight": 0.5})]),
        "quantised": recipe("linear", [(str(root / "quantised"), {"weight": 0.5}), (a, {"weight": 0.5})]),
        "float32": recipe("model_stock", [a, b], base_model=base, dtype="float32"),
    }


def run(text, out, progress=None, *, ray="auto", collect=False, **options):
    plan = PlanOptions(**{"workers": 1, "allow_code": True, "shard_bytes": 200_000, "max_memory": 400 << 20, **options})
    progress = progress or Stopper()
    merge_recipe(text, out, file="merge.yml", options=JobOptions(plan, ray=ray, collect=collect), progress=progress)
    return progress


@pytest.mark.parametrize("kind", ["ties", "dare", "slerp", "slices", "code", "adapter", "quantised", "float32"])
def test_the_bytes_are_those_of_a_merge_on_threads(kind, models, cluster, tmp_path):
    text = recipes(models)[kind]
    run(text, tmp_path / "threads", ray=None)
    expected = contents(tmp_path / "threads")
    shutil.rmtree(tmp_path / "threads")
    for collect in (False, True):
        out = tmp_path / "threads"  # the model card has its name
        told = run(text, out, collect=collect)
        assert sum(told.bytes) == told.total
        assert len(told.bytes) > 4  # batches
        assert_done(out, expected)
        shutil.rmtree(out)


def test_vocabularies_are_aligned(cluster, tmp_path):
    from test_merging_vocabularies import CHATML, LLAMA3, byte_tokens, write

    write(tmp_path / "one", byte_tokens(*CHATML), 259, 1)
    write(tmp_path / "two", byte_tokens(*LLAMA3), 264, 2)
    entries = [(tmp_path / name, {"weight": 0.5}) for name in ("one", "two")]
    text = recipe("linear", entries, tokenizer={"source": "union"})
    found = {}
    for ray in (None, "auto"):
        run(text, tmp_path / "out", ray=ray)
        found[ray] = contents(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
    assert found[None] == found["auto"]


def test_a_gguf_file_is_read(cluster, tmp_path):
    from gguf_files import make_model, write_gguf

    file = write_gguf(tmp_path / "model.gguf", "llama", make_model("llama"), "Q8_0")
    for ray, name in ((None, "here"), ("auto", "there")):
        run(recipe("passthrough", [file]), tmp_path / name, ray=ray)
    here, there = read_model(tmp_path / "here"), read_model(tmp_path / "there")
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())


def test_other_kinds_of_plans_are_carried_out(models, cluster, tmp_path):
    """A mixture of experts, whose operands are stacked and computed, and raw checkpoints into one file."""
    from mergekit.moe import MoeOptions, build_moe
    from mergekit.raw import merge_raw

    experts = [{"source_model": str(models / name), "positive_prompts": [name]} for name in ("a", "b")]
    mixture = {"base_model": str(models / "base"), "gate_mode": "random", "experts": experts, "dtype": "bfloat16"}
    files = [(models / name / "model.safetensors", {"weight": 0.5}) for name in ("base", "a")]
    for ray, name in ((None, "here"), ("auto", "there")):
        options = JobOptions(PlanOptions(workers=1, max_memory=400 << 20), ray=ray)
        build_moe(json.dumps(mixture), tmp_path / name, options=options, moe=MoeOptions())
        merge_raw(recipe("linear", files), tmp_path / f"{name}.safetensors", options=options)
    here, there = read_model(tmp_path / "here"), read_model(tmp_path / "there")
    assert here.keys() == there.keys()
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
    assert (tmp_path / "here.safetensors").read_bytes() == (tmp_path / "there.safetensors").read_bytes()


@pytest.mark.parametrize("command", ["tokensurgeon", "fill-missing-params", "multi"])
def test_commands_with_plans_of_their_own(command, models, cluster, tmp_path, monkeypatch):
    from mergekit.engine import cluster as on_cluster

    begun, execute = [], on_cluster.execute_on_cluster
    monkeypatch.setattr(on_cluster, "execute_on_cluster", lambda *given: begun.append(given) or execute(*given))
    if command == "tokensurgeon":
        pair = make_pair(tmp_path / "pair")
        words = [pair.model.root, pair.donor.root, "-k", 8]
    elif command == "multi":
        text = f"name: half\n{recipe('linear', [models / 'a', models / 'b'], parameters={'weight': 0.5})}"
        (tmp_path / "multi.yml").write_text(f"{text}\n---\n{recipe('linear', ['half'], parameters={'weight': 0.5})}")
        words = [tmp_path / "multi.yml", "--keep"]
    else:
        words = [models / "base", models / "a"]
    written = []
    for name, ways in (("here", ()), ("there", ("--ray",))):
        out = [tmp_path / name] if command == "tokensurgeon" else ["--output-dir", tmp_path / name]
        out = ["--out-path", tmp_path / name] if command == "multi" else out
        line = [command, *words, *out, *ways, "-j", 1, "--max-memory", "400MB"]
        done = CliRunner().invoke(commands, [str(word) for word in line])
        assert done.exit_code == 0, done.output
        written.append((tmp_path / name / "model.safetensors").read_bytes())
    assert written[0] == written[1]
    assert len(begun) == (2 if command == "multi" else 1)


def test_files_have_names_relative_to_the_folder_of_the_command(models, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(models)
    run(recipe("linear", ["a", "b"], parameters={"weight": 0.5}), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def begins(cluster, text, out, told, expect, **options):
    with pytest.raises(expect) as failed:
        run(text, out, told, **options)
    return str(failed.value)


class Remover(Stopper):
    """Removes a file when everything is planned."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def planned(self, plan):
        super().planned(plan)
        self.file.unlink()


def test_a_file_that_a_node_does_not_have_is_named_with_the_node(models, cluster, tmp_path):
    shutil.copytree(models / "a", tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    text = recipe("linear", [(tmp_path / "a", {"weight": 1}), (models / "b", {"weight": 1})])
    said = begins(cluster, text, tmp_path / "out", Remover(weights), CheckpointError)
    assert re.match(r"there is no such file on the node \S+ \(127\.0\.0\.1\)\n  at ", said), said
    assert f"at {weights}\n" in said
    assert "--stream" in said


def test_an_output_that_a_node_does_not_see_is_named_with_the_node(models, cluster, tmp_path):
    out = tmp_path / "out"
    shard = partial_of(out) / "output" / "model-00002-of-00006.safetensors"

    class Unlinker(Stopper):
        def advance(self, nbytes):
            super().advance(nbytes)
            for file in shard.parent.glob("model-*"):
                file.unlink()

    said = begins(cluster, recipes(models)["ties"], out, Unlinker(), OutputError)
    assert re.match(r"on the node \S+ \(127\.0\.0\.1\): cannot write \d+ bytes: No such file", said), said
    assert "`--ray-collect`" in said


@pytest.mark.parametrize("collect", [False, True])
def test_errors_are_those_of_a_merge_on_threads(collect, models, cluster, tmp_path):
    with_infinity = {name: tensor.clone() for name, tensor in read_model(models / "a").items()}
    with_infinity["model.norm.weight"][3] = float("inf")
    write_model(tmp_path / "broken", with_infinity, llama_config(dtype=torch.bfloat16, **SIZES))
    for text, expect in (
        (recipe("linear", [(tmp_path / "broken", {"weight": 1}), (models / "b", {"weight": 1})]), NonFiniteError),
        (recipe(f"{models / 'methods.py'}:failing", [models / "a"], base_model=str(models / "base")), MethodError),
    ):
        said = [
            begins(cluster, text, tmp_path / "out", Stopper(), expect, ray=ray, collect=collect and bool(ray))
            for ray in (None, "auto")
        ]
        if expect is MethodError:  # which tensor is the first one is no law
            said = [re.sub("`model[^`]+`|`lm_head[^`]+`", "`TENSOR`", text) for text in said]
        assert said[0] == said[1]
        assert not partial_of(tmp_path / "out").exists()


def test_a_node_without_room_is_refused(models, cluster, tmp_path):
    from mergekit.errors import BudgetError

    told = begins(
        cluster, recipes(models)["ties"], tmp_path / "out", Stopper(), BudgetError, max_memory=None, workers=64
    )
    assert "`--max-memory`" in told


def test_other_software_is_refused(models, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("mergekit.kernels.compiled.fingerprint", lambda: "of another processor")
    said = begins(cluster, recipes(models)["ties"], tmp_path / "out", Stopper(), DeviceError)
    assert "computes with other software or another kind of processor" in said
    assert "(127.0.0.1)" in said


def command(models, folder, cluster):
    (folder / "merge.yml").write_text(slow(models, folder))
    main = [sys.executable, "-m", "mergekit.cli.main", "yaml"]
    ways = ["--allow-code", "--ray", cluster.address, "-j", "1", "--max-memory", "400MB", "--out-shard-size", "200000"]
    return [*main, *ways, str(folder / "merge.yml"), str(folder / "out")]


def slow(models, folder):
    marks = folder / "marks"
    marks.mkdir(exist_ok=True)
    method = f"{models / 'methods.py'}:slowly"
    return recipe(method, [models / "a"], base_model=str(models / "base"), parameters={"folder": str(marks)})


def lines(out):
    try:
        return journal_of(out).read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return -1


def test_a_merge_whose_command_was_killed_is_continued(models, cluster, tmp_path):
    call, out = command(models, tmp_path, cluster), tmp_path / "out"
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and lines(out) < 3:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = lines(out)
    assert 3 <= finished < len(llama_shapes(llama_config(**SIZES)))
    told = run(slow(models, tmp_path), out)
    assert any(f"an interrupted merge is continued: {finished} of" in notice for notice in told.notices)
    assert_halved(models, out, tmp_path)


def assert_halved(models, out, folder):
    """The tensors are those of the method that is not slow."""
    assert not partial_of(out).exists()
    run(recipes(models)["code"].replace("strength: 0.5", "strength: 1.0"), folder / "half", ray=None)
    half, found = read_model(folder / "half"), read_model(out)
    assert found.keys() == half.keys()
    assert all(torch.equal(tensor, half[name]) for name, tensor in found.items())


def test_a_merge_that_is_interrupted_ends_its_tasks_and_is_continued(models, cluster, tmp_path):
    text, out = recipes(models)["ties"], tmp_path / "out"
    run(text, out, ray=None)
    expected = contents(out)
    shutil.rmtree(out)
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        run(text, out, Stopper(100_000))
    assert lines(out) > 0
    assert any("is continued" in notice for notice in run(text, out, ray=None).notices)  # on threads, this time
    assert_done(out, expected)


class Killer(Stopper):
    """Kills a node while it is merging, which it does not come to an end with; after the first batch of the other."""

    def __init__(self, cluster, marks):
        super().__init__()
        self.cluster, self.node, self.marks, self.killed = cluster, next(iter(cluster.worker_nodes)), marks, False
        (marks / "doomed").write_text(self.node.node_id)

    def begun(self):
        names = [mark.name for mark in self.marks.iterdir() if mark.name.startswith(self.node.node_id)]
        assert not [name for name in names if name.endswith("done")]
        return names

    def advance(self, nbytes):
        super().advance(nbytes)
        if not self.killed:
            self.killed, until = True, time.monotonic() + 20
            while not self.begun() and time.monotonic() < until:
                time.sleep(0.005)
            self.cluster.remove_node(self.node, allow_graceful=False)


@pytest.mark.parametrize("collect", [False, True])
def test_a_node_is_killed_in_the_middle(collect, models, cluster, tmp_path):
    import ray

    while sum(node["Alive"] for node in ray.nodes()) < 2:
        cluster.add_node(**NODE)
    out, text = tmp_path / "out", slow(models, tmp_path)
    killer = Killer(cluster, tmp_path / "marks")
    run(text, out, killer, collect=collect)
    assert killer.begun(), "it was not at work"
    assert sum(killer.bytes) == killer.total
    assert_halved(models, out, tmp_path)
