"""The search: generation by generation, each candidate judged once, all of it kept as soon as it is known."""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mergekit.checkpoint.writing import reported
from mergekit.config import rendered
from mergekit.errors import OutputError, UnsupportedError
from mergekit.evolution.candidate import sweep_memory
from mergekit.evolution.evaluation import Job, Judged
from mergekit.evolution.genome import Genome
from mergekit.evolution.harness import missing
from mergekit.evolution.objectives import Objective
from mergekit.evolution.options import SearchOptions
from mergekit.evolution.workers import Workers
from mergekit.recipe import Scalar

if TYPE_CHECKING:
    from optuna.trial import Trial

    from mergekit.evolution.trials import Entry, Trials


class Observer(Protocol):
    """Is told how a search goes."""

    def judged(self, number: int, judged: Judged) -> None:
        """A candidate was judged in full, or has failed."""

    def generation(self, found: Found) -> None:
        """A generation is over; also called at the end."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found so far.

    Parameters:
        genome: what varied.
        objectives: what candidates were scored by.
        entries: all trials that are over.
        front: numbers of those that no other beats in all objectives; none if objectives are added up.
        importance: share of each gene in how scores differ; known at the end.
    """

    genome: Genome
    objectives: tuple[Objective, ...]
    entries: tuple[Entry, ...]
    front: tuple[int, ...]
    importance: Mapping[str, float]

    @property
    def best(self) -> Entry:
        """The trial with the greatest score, the first of several.

        Raises:
            UnsupportedError: every candidate has failed.
        """
        counting = [entry for entry in self.entries if entry.counts]
        if not counting:
            raise _all_failed(self.entries)
        return max(counting, key=lambda entry: (entry.judged.score, -entry.number))

    def recipe(self, entry: Entry) -> str:
        """The recipe of a trial."""
        return rendered(self.genome.decode(entry.values))


def _all_failed(entries: Sequence[Entry]) -> UnsupportedError:
    reasons = [entry.judged.failure for entry in entries if entry.judged.failure]
    if not reasons:
        return UnsupportedError("no candidate was judged in the time", hint="a longer `--timeout`")
    return UnsupportedError(f"all {len(reasons)} candidates have failed, the first of them because: {reasons[0]}")


def identity_of(genome: Genome, objectives: Sequence[Objective], options: SearchOptions, apart: int) -> dict[str, str]:
    """What must be the same when a search goes on, by what messages call it."""
    space = [(gene.name, gene.choices or (gene.low, gene.high)) for gene in genome.genes]
    text = repr((rendered(genome.decode(genome.start)), space, objectives, options.scattered))
    numbers = sum(gene.varies for gene in genome.genes)
    return {
        "configuration": hashlib.sha256(text.encode()).hexdigest(),
        "seed": str(options.seed),
        "sampler": options.sampler_for(numbers, apart),
        "population": str(options.population_of(numbers)),
        "step (`--sigma0`)": str(options.sigma0),
        "`--halving`": str(options.halving),
    }


@contextmanager
def claimed(storage: Path) -> Iterator[None]:
    """The folder of a search, which no other process searches in at the same time.

    Raises:
        OutputError: another one does, or the folder cannot be made.
    """
    with reported(storage, 0):
        storage.mkdir(parents=True, exist_ok=True)
        lock = (storage / "search.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError("another process searches in this folder", place=str(storage)) from None
        except OSError as error:
            what = f"the folder cannot be locked: {error.strerror}"
            raise OutputError(what, place=str(storage), hint="a folder on another file system") from error
        yield


def search(
    genome: Genome,
    objectives: tuple[Objective, ...],
    workers: Workers,
    storage: Path,
    options: SearchOptions,
    *,
    observer: Observer,
    pareto: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Found:
    """Search, or go on with a search, until the budget or the time is used up.

    Parameters:
        genome: what varies.
        objectives: what candidates are scored by.
        workers: where they are judged.
        storage: folder of the search, claimed by this process.
        options: how is searched.
        observer: is told how it goes.
        pareto: keep objectives apart.
        settings: what else must be the same when the search goes on, by what messages call it.

    Raises:
        OutputError: the folder holds another search.
        UnsupportedError: Optuna is not installed; or every candidate of the first generation has failed.
    """
    try:
        from mergekit.evolution.trials import Trials
    except ImportError as error:
        raise missing("searches", error.name or "optuna") from error
    sweep_memory()
    apart = len(objectives) if pareto else 1
    identity = {**identity_of(genome, objectives, options, apart), **(settings or {})}
    trials = Trials(storage, genome, options, apart, identity)
    run = _Run(trials, objectives, workers, observer, time.monotonic() + (options.timeout or float("inf")))
    if trials.entries():
        observer.generation(run.found())
    while (drawn := trials.generation()) and run.through(drawn):
        found = run.found()
        observer.generation(found)
        if not any(entry.judged.failure is None for entry in found.entries):
            raise _all_failed(found.entries)
    found = run.found(trials.importance())
    observer.generation(found)
    return found


@dataclass(slots=True)
class _Run:
    """Judges the trials of one generation after the other."""

    trials: Trials
    objectives: tuple[Objective, ...]
    workers: Workers
    observer: Observer
    deadline: float
    recipes: dict[tuple[Scalar, ...], str] = field(default_factory=dict)

    def found(self, importance: Mapping[str, float] | None = None) -> Found:
        """What is known now."""
        entries, front = tuple(self.trials.entries()), tuple(self.trials.front())
        return Found(self.trials.genome, self.objectives, entries, front, importance or {})

    def recipe(self, values: tuple[Scalar, ...]) -> str:
        """The recipe of some values."""
        if values not in self.recipes:
            self.recipes[values] = rendered(self.trials.genome.decode(values))
        return self.recipes[values]

    def through(self, drawn: Sequence[Trial]) -> bool:
        """Judge a generation; False if the time is over before its end."""
        recipes = {trial.number: self.recipe(self.trials.values(trial)) for trial in drawn}
        alive = list(drawn)
        for step in self.trials.steps:
            self._judge(alive, recipes, step)
            if any(self.trials.kept(trial, step) is None for trial in alive):
                return False
            alive = [trial for trial in alive if not self._over(trial, step)]
        return True

    def _over(self, trial: Trial, step: int) -> bool:
        judged = self.trials.kept(trial, step)
        failed = judged is not None and judged.failure is not None
        return failed or step == self.trials.steps[-1] or self.trials.give_up_on(trial, step)

    def _judge(self, alive: Sequence[Trial], recipes: Mapping[int, str], step: int) -> None:
        """Judge each recipe once that has not been judged at this size, and keep the result for all its trials."""
        known = self._known(step)
        waiting: dict[str, list[Trial]] = {}
        for trial in alive:
            recipe = recipes[trial.number]
            if self.trials.kept(trial, step) is not None:
                continue
            if recipe in known:
                self.trials.keep(trial, step, known[recipe][1], known[recipe][0])
            else:
                waiting.setdefault(recipe, []).append(trial)
        share = self.trials.share(step)
        for job, judged in self.workers.judge(self._in_time([Job(recipe, share) for recipe in waiting])):
            first, *others = waiting[job.recipe]
            self.trials.keep(first, step, judged, None)
            for trial in others:
                self.trials.keep(trial, step, judged, first.number)
            if judged.failure or step == self.trials.steps[-1]:  # scores of other sizes cannot be compared
                self.observer.judged(first.number, judged)

    def _in_time(self, jobs: Sequence[Job]) -> Iterator[Job]:
        for job in jobs:
            if time.monotonic() >= self.deadline:
                return
            yield job

    def _known(self, step: int) -> dict[str, tuple[int, Judged]]:
        known: dict[str, tuple[int, Judged]] = {}
        for number, values, size, judged in self.trials.results():
            if size == step:
                known.setdefault(self.recipe(values), (number, judged))
        return known
