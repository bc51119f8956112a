"""What merges share from candidate to candidate changes no byte, and is found out once."""

import numpy as np
import pytest
import torch

from mergekit.api.options import MergeOptions
from mergekit.config import rendered
from mergekit.engine.local import Recall
from mergekit.evolution.candidate import Bench, Loading
from mergekit.evolution.shared import Shared
from mergekit.methods import METHODS

SCALES = (0.4, 0.9, 1.3)
DENSE = {"density": 0.4}
SETTINGS = {
    "ties": DENSE,
    "ties, by count": {**DENSE, "consensus_method": "count"},
    "ties, with norms": {**DENSE, "rescale": True, "rescale_norm": "l2"},
    "dare_ties": DENSE,
    "dare_linear": {**DENSE, "rescale": True, "normalize": True},
    "breadcrumbs": {**DENSE, "gamma": 0.05},
    "breadcrumbs_ties": {**DENSE, "normalize": True},
    "della": {**DENSE, "epsilon": 0.1},
    "della_linear": {**DENSE, "epsilon": 0.1},
}


@pytest.fixture(autouse=True)
def _in_examples(monkeypatch, examples):
    monkeypatch.chdir(examples)


def recipe(case, **others):
    own = {"merge_method": case.partition(",")[0], "base_model": "models/base", "dtype": "bfloat16"}
    models = [{"model": f"models/{name}", "parameters": {"weight": weight}} for name, weight in WEIGHTS.items()]
    return rendered({**own, "models": models, "parameters": {**SETTINGS[case], **others}})


WEIGHTS = {"de": 0.6, "es": 0.3}


def bench(directions=0.0, **options):
    return Bench(Loading(MergeOptions(num_threads=1, **options), directions=directions))


def merged(own, text):
    with own.candidate(text) as candidate:
        return {name: tensor.view(torch.int16).numpy().copy() for name, tensor in candidate.tensors()}


def alike(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_every_method_with_a_scale_shares_its_direction():
    scaled = {name for name, method in METHODS.items() if "lambda" in {each.name for each in method.parameters()}}
    assert scaled - {"task_arithmetic"} == {case.partition(",")[0] for case in SETTINGS}  # which has nothing to share


@pytest.mark.parametrize("case", SETTINGS)
def test_merges_along_a_direction_are_the_merges_by_themselves(case):
    shared = bench(directions=0.25)
    for scale in SCALES:
        text = recipe(case, **{"lambda": scale})
        assert alike(merged(shared, text), merged(bench(), text))
    other = recipe(case, **{"lambda": 1.0, "density": 0.7})  # has a direction of its own
    assert alike(merged(shared, other), merged(bench(), other))


def test_merges_on_torch_share_directions_too():
    shared = bench(directions=0.25, device="cpu")
    for scale in SCALES[:2]:
        text = recipe("dare_ties", **{"lambda": scale})
        assert alike(merged(shared, text), merged(bench(device="cpu"), text))


@pytest.mark.parametrize(("room", "operands"), [(0, 3), (1 << 30, 2)])
def test_a_direction_is_made_once_if_there_is_room(room, operands):
    """What is read later is the base and the direction; without room the base and both models."""
    own = bench()
    own.shared = Shared(room)
    merged(own, recipe("ties"))
    seen = []

    def work(task):
        seen.append(len(task.operands))
        return np.zeros(task.out.nbytes, np.uint8)

    with own.candidate(recipe("ties", **{"lambda": 2.0})) as candidate:
        for task in candidate.plan.tasks:
            own.shared.merged(task, work)
        assert seen == [operands] * len(candidate.plan.tasks)


@pytest.mark.parametrize(
    ("case", "others", "again"),
    [
        ("ties", {"lambda": 2.0}, False),
        ("ties", {"normalize": False}, False),
        ("ties", {"density": 0.5}, True),
        ("breadcrumbs", {"gamma": 0.1}, True),
        ("ties, with norms", {"lambda": 0.5}, False),
    ],
)
def test_reductions_are_done_again_only_where_they_would_find_something_else(case, others, again):
    recall, done = Recall(), []

    def reduce(task):
        done.append(task.out.name)
        return {}

    for text in (recipe(case), recipe(case), recipe(case, **others)):
        with bench().candidate(text) as candidate:
            tasks = candidate.plan.tasks
        for task in tasks:
            recall.stats(task, reduce)
    assert len(done) == len(tasks) * (2 if again else 1)


def test_weights_change_but_cuts_stay():
    own = bench()
    for weight in (0.2, 0.7):
        text = recipe("ties, with norms").replace("weight: 0.6", f"weight: {weight}")
        assert alike(merged(own, text), merged(bench(), text))


def test_workers_of_one_machine_share_the_room_for_directions():
    from mergekit.evolution.evaluation import RecipeEvaluator

    evaluator = RecipeEvaluator((), Loading(MergeOptions(), directions=0.25, device="cpu"))
    assert evaluator.prepare(1, None, 4).loading.directions == 0.25 / 4
    assert evaluator.prepare(1, None, 4).loading.device == "cpu"
