"""The search by itself: reproducible, resumed at any point, each candidate judged once."""

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml

from mergekit.api.options import MergeOptions
from mergekit.config import rendered
from mergekit.errors import OutputError, UnsupportedError
from mergekit.evolution.candidate import memory_folder
from mergekit.evolution.evaluation import Evaluator, Job, Judged
from mergekit.evolution.objectives import CallObjective, CommandObjective, load_function
from mergekit.evolution.options import SearchOptions
from mergekit.evolution.preparing import prepare
from mergekit.evolution.record import write_records
from mergekit.evolution.search import claimed, search
from mergekit.evolution.workers import Alone, Processes

BEST = {"models/de": 0.9, "models/es": 0.3, "models/fr": 0.6}


class KilledError(BaseException):
    """Ends a search like a kill: nothing of the search catches it."""


@dataclass
class Bowl(Evaluator):
    """Scores a recipe by how far its weights are from the best ones, in one objective or one for each model."""

    apart: bool = False
    patience: float = math.inf
    fails_above: float = math.inf
    dies_above: float = math.inf
    seen: list = field(default_factory=list)

    def judge(self, job):
        if len(self.seen) >= self.patience:
            raise KilledError
        self.seen.append((job.recipe, job.share))
        slices = yaml.safe_load(job.recipe)["slices"]
        weights = {each["model"]: each["parameters"]["weight"] for each in slices[0]["sources"] if "parameters" in each}
        if max(weights.values()) > self.dies_above:
            os._exit(7)
        if max(weights.values()) > self.fails_above:
            return Judged((), (), 0.0, "too heavy")
        off = tuple((weight - BEST[name]) ** 2 / job.share for name, weight in weights.items())
        values = off if self.apart else (sum(off),)
        return Judged(values, tuple(-value for value in values), 0.0)

    def prepare(self, threads, device, sharing=1):
        return self


class Quiet:
    def judged(self, number, judged):
        pass

    def generation(self, found):
        pass


@pytest.fixture
def genome(examples, monkeypatch):
    monkeypatch.chdir(examples)

    def drafted(method="task_arithmetic", **others):
        own = {"merge_method": method, "base_model": "models/base", "models": list(BEST), **others}
        return prepare(rendered({"genome": own, "tasks": ["own"]}), "e.yml", MergeOptions())[1]

    return drafted


def found_by(genome, storage, bowl=None, crew=None, pareto=False, observer=None, **options):
    bowl = bowl or Bowl(pareto)
    count = len(BEST) if pareto else 1
    objectives = tuple(CallObjective(f"bowl {index}", 1.0, "bowl:bowl", False) for index in range(count))
    options = SearchOptions(**{"evaluations": 14, **options})
    with claimed(storage), crew or Alone(bowl) as own:
        found = search(genome, objectives, own, storage, options, observer=observer or Quiet(), pareto=pareto)
        write_records(found, storage)
    return found


def told(found):
    return [(entry.number, entry.values, entry.judged.values, entry.pruned, entry.twin) for entry in found.entries]


def test_it_finds_the_best_weights(genome, tmp_path):
    found = found_by(genome(), tmp_path, evaluations=100)
    assert found.best.values == pytest.approx(tuple(BEST.values()), abs=0.05)
    assert found.entries[0].values == pytest.approx((1 / 3,) * 3)
    assert len(found.entries) == 100


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "cmaes"},
        {"sampler": "tpe"},
        {"sampler": "random"},
        {"sampler": "nsga2", "population": 5},
        {"sampler": "tpe", "workers": 3},
        {"halving": True},
        {"population": 4, "scattered": True},
    ],
    ids=str,
)
def test_e3_a_search_that_is_killed_again_and_again_is_the_same_search(genome, tmp_path, options):
    own = genome()
    whole = told(found_by(own, tmp_path / "whole", **options))
    for patience in (1, 4, 5):
        with pytest.raises(KilledError):
            found_by(own, tmp_path / "killed", Bowl(patience=patience), **options)
    assert told(found_by(own, tmp_path / "killed", **options)) == whole


@pytest.mark.parametrize(("last", "options"), [(8, {}), (13, {"halving": True})], ids=str)
def test_e3_a_kill_between_a_result_and_the_end_of_its_trial_is_no_matter(genome, tmp_path, monkeypatch, last, options):
    own = genome()
    bowl = {"fails_above": 0.7}
    whole = told(found_by(own, tmp_path / "whole", Bowl(**bowl), **options))
    tell = optuna.Study.tell

    def killed(study, trial, *arguments, **others):
        if getattr(trial, "number", trial) == last:
            raise KilledError
        return tell(study, trial, *arguments, **others)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", killed)
        with pytest.raises(KilledError):
            found_by(own, tmp_path / "killed", Bowl(**bowl), **options)
    assert told(found_by(own, tmp_path / "killed", Bowl(**bowl), **options)) == whole


def test_e3_the_seed_decides(genome, tmp_path):
    own = genome()
    first, again, other = (
        told(found_by(own, tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first[0] == other[0]
    assert first[1:] != other[1:]


def test_e3_there_are_never_more_candidates_than_allowed_and_more_can_be_allowed_later(genome, tmp_path):
    own = genome()
    assert [len(found_by(own, tmp_path / "ws", evaluations=count).entries) for count in (1, 2, 12, 20)] == [
        1,
        2,
        12,
        20,
    ]
    assert told(found_by(own, tmp_path / "ws", evaluations=20)) == told(found_by(own, tmp_path / "one", evaluations=20))


def test_workers_do_not_change_what_is_found(genome, tmp_path):
    own = genome()
    alone = told(found_by(own, tmp_path / "alone", evaluations=16))
    assert told(found_by(own, tmp_path / "both", crew=Processes(Bowl(), 2), evaluations=16)) == alone


def test_a_process_that_dies_fails_its_candidate_alone(genome, tmp_path):
    found = found_by(genome(), tmp_path, crew=Processes(Bowl(dies_above=0.7), 2), evaluations=12)
    dead = [entry for entry in found.entries if entry.judged.failure]
    assert dead
    assert {entry.judged.failure for entry in dead} == {"the process that judged it ended with exit code 7"}
    assert all((max(entry.values) > 0.7) == (entry in dead) for entry in found.entries)


@dataclass
class Unopened(Evaluator):
    """Ends every process that would make a copy of it, before it has looked at a candidate."""

    kept: int = 1

    def judge(self, job):
        raise AssertionError

    def prepare(self, threads, device, sharing=1):
        return self

    def __setstate__(self, state):
        os._exit(5)


def test_processes_that_die_before_they_have_read_anything(genome, tmp_path):
    with pytest.raises(UnsupportedError, match="ended with exit code 5"):
        found_by(genome(), tmp_path, crew=Processes(Unopened(), 2), evaluations=2)


@dataclass
class Running(Evaluator):
    """Has a folder in memory and a command that runs for a minute, while it says which."""

    told: Path

    def judge(self, job):
        folder = memory_folder(0)
        command = f"echo $$ {folder} > {self.told}.new; mv {self.told}.new {self.told}; sleep 60; true"
        CommandObjective("slow", 1.0, command, False).measure(SimpleNamespace(folder=folder), 1.0)

    def prepare(self, threads, device, sharing=1):
        return self


def test_when_a_search_is_stopped_its_processes_leave_no_command_and_no_folder(tmp_path):
    told = tmp_path / "told"

    def jobs():
        yield Job("")
        while not told.exists():
            time.sleep(0.02)
        raise KilledError

    with pytest.raises(KilledError), Processes(Running(told), 2) as crew:
        list(crew.judge(jobs()))
    command, folder = told.read_text().split()
    assert not Path(folder).exists()
    deadline = time.monotonic() + 5
    while Path("/proc", command).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path("/proc", command).exists()


def test_failed_candidates_are_worst_and_their_reasons_are_kept(genome, tmp_path):
    found = found_by(genome(), tmp_path, Bowl(fails_above=0.7))
    failed = [entry for entry in found.entries if entry.judged.failure]
    assert failed
    assert all(entry.judged.score == -math.inf and entry.judged.failure == "too heavy" for entry in failed)
    assert max(found.best.values) <= 0.7
    history = json.loads((tmp_path / "history.json").read_text(encoding="utf-8"))
    assert [trial["failure"] for trial in history["trials"]].count("too heavy") == len(failed)
    assert "too heavy" in (tmp_path / "history.csv").read_text(encoding="utf-8")


def test_a_search_whose_first_candidates_all_fail_ends_and_says_why(genome, tmp_path):
    bowl = Bowl(fails_above=-1)
    with pytest.raises(UnsupportedError, match="all 8 candidates have failed, the first of them because: too heavy"):
        found_by(genome(), tmp_path, bowl)
    assert len(bowl.seen) == 8


def test_candidates_that_are_alike_are_judged_once(genome, tmp_path):
    own = genome(parameters={"weight": 0.5}, bounds={"normalize": [False, True]}, layer_granularity=2)
    bowl = Single()
    found = found_by(own, tmp_path, bowl, evaluations=25)
    assert len(found.entries) == 25
    assert len(bowl.seen) == len({recipe for recipe, _ in bowl.seen}) <= 4
    by_number = {entry.number: entry for entry in found.entries}
    twins = [entry for entry in found.entries if entry.twin is not None]
    assert len(twins) == 25 - len(bowl.seen)
    assert all(by_number[entry.twin].values == entry.values for entry in twins)
    assert all(by_number[entry.twin].judged.values == entry.judged.values for entry in twins)


@dataclass
class Single(Evaluator):
    """Scores a recipe by how many of its slices normalise."""

    seen: list = field(default_factory=list)

    def judge(self, job):
        self.seen.append((job.recipe, job.share))
        value = float(job.recipe.count("normalize: true"))
        return Judged((value,), (value,), 0.0)

    def prepare(self, threads, device, sharing=1):
        return self


def test_only_scores_that_can_be_compared_are_told(genome, tmp_path):
    heard = []

    class Listener(Quiet):
        def judged(self, number, judged):
            heard.append((number, judged.score))

    found = found_by(genome(), tmp_path, halving=True, observer=Listener())
    assert heard == [(entry.number, entry.judged.score) for entry in found.entries if entry.counts]


def test_successive_halving_judges_few_candidates_in_full(genome, tmp_path):
    bowl = Bowl()
    found = found_by(genome(), tmp_path, bowl, halving=True, evaluations=30)
    shares = [share for _, share in bowl.seen]
    assert shares.count(1 / 9) == 30
    assert 30 > shares.count(1 / 3) > shares.count(1.0) > 0
    assert sum(not entry.pruned for entry in found.entries) == shares.count(1.0)
    assert found.best.counts
    assert found.best.judged.score > found.entries[0].judged.score


def test_a_front_of_several_objectives(genome, tmp_path):
    found = found_by(genome(), tmp_path, pareto=True, evaluations=24, population=8)
    points = {entry.number: entry.judged.values for entry in found.entries}

    def beats(one, other):
        return one != other and all(mine <= others for mine, others in zip(one, other, strict=True))

    expected = {number for number, own in points.items() if not any(beats(other, own) for other in points.values())}
    alike = {points[number] for number in expected}
    assert {points[number] for number in found.front} == alike
    files = {file.stem for file in (tmp_path / "front").iterdir()}
    assert files == {f"trial_{number}" for number in found.front}


def test_the_importance_of_what_was_searched(genome, tmp_path):
    found = found_by(genome(bounds={"lambda": [0.99, 1.01]}), tmp_path, evaluations=30, sampler="random")
    assert sum(found.importance.values()) == pytest.approx(1)
    assert min(found.importance, key=found.importance.get) == "lambda"


def test_a_folder_of_another_search_is_refused(genome, tmp_path):
    found_by(genome(), tmp_path, evaluations=1)
    with pytest.raises(OutputError, match=r"a search with another seed \(0, not 3\)"):
        found_by(genome(), tmp_path, evaluations=1, seed=3)
    with pytest.raises(OutputError, match="a search with another configuration"):
        found_by(genome(allow_negative_weights=True), tmp_path, evaluations=1)
    with pytest.raises(OutputError, match="a search with another sampler"):
        found_by(genome(), tmp_path, evaluations=1, sampler="tpe")


def test_files_of_one_name_are_different_functions_and_may_hold_dataclasses(tmp_path):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "score.py").write_text(f"{text}def f(): return {folder!r}\n", encoding="utf-8")
    assert [load_function(f"{tmp_path}/{folder}/score.py:f")() for folder in ("a", "b")] == ["a", "b"]


def test_one_process_searches_in_a_folder_at_a_time(tmp_path):
    with claimed(tmp_path), pytest.raises(OutputError, match="another process"), claimed(tmp_path):
        pass


def test_the_time_can_be_over_and_the_search_goes_on_later(genome, tmp_path):
    own = genome()
    with pytest.raises(UnsupportedError, match="no candidate was judged in the time"):
        _ = found_by(own, tmp_path / "ws", timeout=1e-9).best
    assert told(found_by(own, tmp_path / "ws")) == told(found_by(own, tmp_path / "other"))
