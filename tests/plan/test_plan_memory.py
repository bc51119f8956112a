"""Memory is decided before a merge starts, in integers."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import llama_config, llama_shapes, recipe, write_hollow

from mergekit.errors import BudgetError
from mergekit.kernels import GRAIN
from mergekit.plan import PlanOptions, plan_merge
from mergekit.plan.memory import PROCESS, fit_memory

MEGABYTE = 1_000_000
ROWS = 12_000


@given(
    rows=st.integers(1, 64),
    workers=st.integers(1, 256),
    limit=st.integers(PROCESS // MEGABYTE + 20, 100_000).map(lambda count: count * MEGABYTE),
)
def test_the_peak_stays_within_the_limit(rows, workers, limit):
    memory = fit_memory(rows, workers, limit)
    assert memory.peak <= limit
    assert 1 <= memory.workers <= workers
    assert memory.stripe % GRAIN == 0
    assert memory.stripe >= GRAIN


def named(error):
    """The budget that a refusal says would do, in bytes."""
    return int(re.search(r"--max-memory (\d+)MB", str(error))[1]) * MEGABYTE


sizes = st.integers(0, 40).map(lambda power: (1 << power) - 1)


@given(
    rows=st.integers(1, 1000),
    workers=st.none() | st.integers(1, 64),
    limit=st.integers(1, PROCESS // MEGABYTE),
    needs=st.fixed_dictionaries({}, optional={"grain": sizes, "kept": sizes, "scratch": sizes, "room": sizes}),
)
def test_a_refusal_names_a_budget_that_then_works(rows, workers, limit, needs):
    with pytest.raises(BudgetError) as caught:
        fit_memory(rows, workers, limit * MEGABYTE, **needs)
    enough = named(caught.value)
    assert fit_memory(rows, workers, enough, **needs).peak <= enough
    with pytest.raises(BudgetError):
        fit_memory(rows, workers, enough - 2 * MEGABYTE, **needs)


FUNCTIONS = """
from mergekit.methods import merge_method
@merge_method(title="Plain", base="ignored")
def plain(models):
    return models.mean(axis=0)
@merge_method(title="Whole", base="ignored", whole=True)
def whole(models):
    return models.mean(axis=0)
@merge_method(title="Torch", base="ignored", arrays="torch")
def library(models):
    return models.mean(dim=0)
"""


def hollow(folder, rows):
    config = llama_config(layers=1, width=256, inner=256, rows=rows)
    return write_hollow(folder, llama_shapes(config), config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, and methods of ours."""
    root = tmp_path_factory.mktemp("models")
    (root / "own.py").write_text(FUNCTIONS)
    for name in ("base", "a", "b", "c"):
        hollow(root / name, ROWS)
    return root


def budget_of(text):
    """What a plan that fits nowhere says would do, after a look whether it does."""
    with pytest.raises(BudgetError) as caught:
        plan_merge(text, options=PlanOptions(max_memory=1, allow_code=True))
    enough = named(caught.value)
    for workers in (None, 1, 8):
        plan = plan_merge(text, options=PlanOptions(max_memory=enough, workers=workers, allow_code=True))
        assert plan.memory.peak <= enough
    with pytest.raises(BudgetError):
        plan_merge(text, options=PlanOptions(max_memory=enough - 2 * MEGABYTE, allow_code=True))
    return enough


@pytest.mark.parametrize("method", ["linear", "della", "sce", "karcher", "plain", "whole", "library"])
def test_plans_name_a_budget_that_then_works(method, folder):
    own = f"{folder / 'own.py'}:{method}" if method in ("plain", "whole", "library") else method
    parameters = {"linear": {"weight": 1}, "della": {"density": 0.5}, "sce": {"select_topk": 0.5}}.get(method)
    base = str(folder / "base") if method in ("della", "sce") else None
    text = recipe(own, [folder / name for name in "abc"], base_model=base, parameters=parameters)
    assert budget_of(text) > PROCESS


def test_more_is_asked_for_where_more_is_needed(folder):
    """A whole tensor; a library; as much again for what a function computes."""

    def asked(method):
        return budget_of(recipe(method, [folder / name for name in "abc"], parameters={"weight": 1}))

    plain, whole, library = (asked(f"{folder / 'own.py'}:{name}") for name in ("plain", "whole", "library"))
    assert plain >= asked("linear")
    assert whole - plain > ROWS * 256 * 4 * (3 + 2)
    assert library - plain > 300 * MEGABYTE


def test_vocabularies_that_are_aligned_take_their_tables(folder, tmp_path):
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for file in (folder / name).iterdir():
            (tmp_path / name / file.name).hardlink_to(file)
        vocabulary = {f"token{(7 * number + seed) % (ROWS + 1)}": number for number in range(ROWS)}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": next(iter(vocabulary))}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    entries = [tmp_path / name for name in "ab"]
    apart = budget_of(recipe("linear", entries, tokenizer={"source": "union"}, parameters={"weight": 1}))
    alike = budget_of(recipe("linear", [folder / name for name in "ab"], parameters={"weight": 1}))
    assert apart - alike > 2 * ROWS * 1000


@given(rows=st.integers(1, 64), workers=st.integers(1, 64))
def test_more_memory_never_makes_less_of_it(rows, workers):
    sizes = [fit_memory(rows, workers, limit << 20) for limit in (400, 800, 1600, 64_000)]
    assert sorted(memory.workers for memory in sizes) == [memory.workers for memory in sizes]
    assert sizes[-1].workers == workers


def test_without_wishes_the_machine_decides():
    assert fit_memory(4).workers >= 1
