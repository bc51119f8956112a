"""Peak memory of a whole merge, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import llama_config, llama_shapes, recipe, write_hollow

SOURCE = Path(__file__).parents[2] / "src"
MEGABYTE = 1 << 20
ROWS = {"small": 60_000, "large": 240_000}
WIDTH = 256

MERGE = """
import resource, sys
from pathlib import Path
from mergekit.merging import JobOptions, merge_recipe
from mergekit.plan import PlanOptions

plan = PlanOptions(workers=2, max_memory=int(sys.argv[2]))
report = merge_recipe(Path(sys.argv[1]).read_text(), Path(sys.argv[1]).with_name("out"), options=JobOptions(plan))
status = Path("/proc/self/status")
if status.exists():  # what getrusage says here includes the process that started this one
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    print(int(line.split()[1]) << 10)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_weights(folder, rows, seed):
    """A Llama of few large tensors, one megabyte of numbers again and again; returns its size in bytes."""
    config = llama_config(layers=2, width=WIDTH, inner=4 * WIDTH, rows=rows)
    write_hollow(folder, llama_shapes(config), config)
    file = folder / "model.safetensors"
    weights = np.random.default_rng(seed).normal(0, 0.05, MEGABYTE // 2).astype(np.float32)
    block = (weights.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with file.open("r+b") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        stream.seek(start)
        left = file.stat().st_size - start
        while left:
            left -= stream.write(block[:left])
    return file.stat().st_size


def peak_of(file, limit):
    """Most bytes that a process takes which carries a recipe out with two workers within a limit."""
    command = [sys.executable, "-c", MERGE, str(file), str(limit)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert not done.returncode, done.stderr
    assert json.loads((file.parent / "out" / "merge_report.json").read_text())
    return int(done.stdout)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """For a small and a large model its size, and the peak of a TIES merge of three of them, in bytes."""
    found = {}
    for name, rows in ROWS.items():
        root = tmp_path_factory.mktemp(name)
        nbytes = [write_weights(root / model, rows, seed) for seed, model in enumerate(("base", "a", "b", "c"))]
        entries = [(root / model, {"density": 0.3}) for model in "abc"]
        (root / "merge.yml").write_text(recipe("ties", entries, base_model=str(root / "base")))
        found[name] = (nbytes[0], peak_of(root / "merge.yml", 500_000_000))
        for file in root.rglob("*.safetensors"):
            file.unlink()
    for name, (nbytes, peak) in found.items():
        print(f"{name}: models of {nbytes / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    return found


def test_peak_memory_stays_within_the_budget(sizes):
    assert all(peak < 500_000_000 for _, peak in sizes.values())


def test_peak_memory_does_not_grow_with_the_model(sizes):
    (small, low), (large, high) = sizes["small"], sizes["large"]
    assert large > 3 * small
    assert high - low < 40_000_000


MANY = 24
HUNGRY = {
    "della": {"density": 0.5},
    "sce": {"select_topk": 0.3},
    "nuslerp": {"weight": 1, "nuslerp_flatten": False, "nuslerp_row_wise": True},
    "karcher": {},
}
"""Methods that hold more than stripes: ranks and votes, collected scores, sums of columns, sums of many models."""


@pytest.mark.parametrize("method", HUNGRY)
def test_what_reductions_hold_is_within_the_budget(method, tmp_path):
    limit = 600_000_000
    config = llama_config(layers=1, width=64, inner=64, rows=64)
    shapes = {**llama_shapes(config), "model.wide.weight": (8, 500_000)}
    write_hollow(tmp_path / "base", shapes, config)
    names = [f"model{number}" for number in range({"karcher": MANY, "nuslerp": 2}.get(method, 3))]
    for name in names:
        (tmp_path / name).symlink_to(tmp_path / "base")
    entries = [tmp_path / name for name in names]
    base = None if method == "karcher" else str(tmp_path / "base")
    (tmp_path / "merge.yml").write_text(recipe(method, entries, base_model=base, parameters=HUNGRY[method] or None))
    peak = peak_of(tmp_path / "merge.yml", limit)
    print(f"{method}: peak {peak / 1e6:.0f} MB")
    assert peak < limit


KINDS = (
    "ties",
    "sce",
    "nuslerp columns",
    "karcher of 9",
    "custom in float64",
    "adapters",
    "vocabularies",
    "GGUF",
    "fp8",
    "pickles",
)
COMPILER = 150_000_000
"""Bytes of the budget that are for compiling kernels, and are not taken where they have been compiled."""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_merges_of_every_kind_stay_within_a_budget_that_is_small_beside_the_models():
    """The benchmark, small: some of each kind of method and of source; it has all of them, and larger models."""
    budget = 460
    command = [sys.executable, str(SOURCE.parent / "benchmarks" / "memory.py"), "--json", "--budget", f"{budget}MB"]
    command += ["--gigabytes", "0.35", "--only", ",".join(KINDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    found = {each["case"]: each for each in json.loads(done.stdout)}
    assert found.keys() == set(KINDS)
    for name, each in found.items():
        assert not each["refused"], name
        assert each["peak"] <= each["planned"] <= budget * 1_000_000, name
        assert each["compiled"] or each["peak"] <= each["planned"] - COMPILER, name
