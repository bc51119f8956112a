"""The state of a search: trials of Optuna in a file of SQLite, which a kill leaves as it was.

Whatever is drawn for a trial is a function of the seed, the trial's number and the trials before its generation, so
that a search that was killed goes on as if it had not been. This module imports Optuna: import it where it is used.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from mergekit.errors import OutputError
from mergekit.evolution.evaluation import Judged
from mergekit.evolution.genome import Gene, Genome
from mergekit.evolution.options import SearchOptions
from mergekit.recipe import Scalar

DATABASE = "search.db"
_STEPS = (1, 3, 9)  # evaluation sizes of successive halving; the last is everything
_KEEPS = 3  # one candidate in so many goes on to the next size


@final
class Reproducible(BaseSampler):
    """Draws with a sampler that is made anew for each trial, from the seed and the trial's number.

    Parameters:
        make: makes a sampler of a seed.
        seed: of the search.
        space: all that is drawn, known from the beginning.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int, space: Mapping[str, BaseDistribution]) -> None:
        self._make = make
        self._seed = seed
        self._space = dict(space)

    def _of(self, *parts: object) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls options new or old that it has had for years
            return self._make(zlib.crc32(repr((self._seed, *parts)).encode()) & 0x7FFFFFFF)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All that is no choice between words."""
        del study, trial
        words = CategoricalDistribution
        return {name: own for name, own in self._space.items() if not (isinstance(own, words) or own.single())}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw everything at once, if the sampler can."""
        return self._of(trial.number).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one value on its own."""
        sampler = self._of(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """What the sampler does when a trial is over."""
        self._of(trial.number).after_trial(study, trial, state, values)


def _distribution(gene: Gene) -> BaseDistribution:
    if gene.choices:
        return CategoricalDistribution(gene.choices)
    if gene.parameter.kind == "int":
        return IntDistribution(round(gene.low), round(gene.high))
    return FloatDistribution(gene.low, gene.high)


def _draw(trial: Trial, gene: Gene) -> None:
    if gene.choices:
        trial.suggest_categorical(gene.name, gene.choices)
    elif gene.parameter.kind == "int":
        trial.suggest_int(gene.name, round(gene.low), round(gene.high))
    else:
        trial.suggest_float(gene.name, gene.low, gene.high)


def _sampler(genome: Genome, start: Mapping[str, Scalar], options: SearchOptions, objectives: int) -> BaseSampler:
    space = {gene.name: _distribution(gene) for gene in genome.genes}
    samplers = optuna.samplers
    numbers = {gene.name: start[gene.name] for gene in genome.genes if gene.varies}
    population = options.population_of(len(numbers))
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "cmaes": lambda seed: samplers.CmaEsSampler(
            x0=numbers,
            sigma0=options.sigma0,
            n_startup_trials=0,
            warn_independent_sampling=False,
            seed=seed,
            consider_pruned_trials=options.halving,
            popsize=population,
        ),
        "tpe": lambda seed: samplers.TPESampler(seed=seed),
        "nsga2": lambda seed: samplers.NSGAIISampler(population_size=population, seed=seed),
        "random": lambda seed: samplers.RandomSampler(seed=seed),
    }
    return Reproducible(makers[options.sampler_for(len(numbers), objectives)], options.seed, space)


@dataclass(frozen=True, slots=True)
class Entry:
    """A trial that is over.

    Parameters:
        number: counted from 0.
        values: of the genes, in their order.
        judged: what came of it, at the largest size at which it was judged.
        pruned: whether it was given up before it was judged in full.
        twin: the trial with the same recipe whose result this is, or None.
    """

    number: int
    values: tuple[Scalar, ...]
    judged: Judged
    pruned: bool
    twin: int | None

    @property
    def counts(self) -> bool:
        """Whether its score can be compared with others."""
        return not self.pruned and self.judged.failure is None


@final
class Trials:
    """All trials of a search, past and pending.

    Parameters:
        storage: folder of the search.
        genome: what varies.
        options: how is searched.
        objectives: how many objectives are kept apart; 1 if they are added up.
        identity: what must be the same when a search goes on, by what messages call it.

    Raises:
        OutputError: the folder holds another search.
    """

    def __init__(
        self, storage: Path, genome: Genome, options: SearchOptions, objectives: int, identity: Mapping[str, str]
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.genome, self.options, self.objectives = genome, options, objectives
        first = genome.scattered(options.seed) if options.scattered else genome.start
        start = {gene.name: value for gene, value in zip(genome.genes, first, strict=True)}
        self._numbers = [gene.name for gene in genome.genes if gene.varies]
        self.study = optuna.create_study(
            storage=f"sqlite:///{storage / DATABASE}",
            sampler=_sampler(genome, start, options, objectives),
            study_name="search",
            directions=["maximize"] * objectives,
            load_if_exists=True,
        )
        self._refuse_another(identity, storage)
        self._end_judged()
        if not self.study.trials:
            self.study.enqueue_trial(start)

    def _refuse_another(self, identity: Mapping[str, str], storage: Path) -> None:
        known = self.study.user_attrs
        for name, text in identity.items():
            if known.get(name, text) != text:
                shown = f" ({known[name]}, not {text})" if len(text) < 20 else ""
                what = f"the folder holds a search with another {name}{shown}"
                hint = "another folder for `--storage-path`, or what the search was begun with"
                raise OutputError(what, place=str(storage), hint=hint)
            self.study.set_user_attr(name, text)

    @property
    def steps(self) -> tuple[int, ...]:
        """Evaluation sizes, of the last one."""
        return _STEPS if self.options.halving else _STEPS[-1:]

    def share(self, step: int) -> float:
        """How much of all text and examples a size is."""
        return step / _STEPS[-1]

    def generation(self) -> list[Trial]:
        """The trials to be judged next: those that a kill has left, and new ones up to the end of their generation.

        All of a generation are drawn before the first of them is over, so that no draw depends on which are done
        first, or on where a budget ended. Empty if the budget is used up.
        """
        started = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        left = [trial for trial in started if trial.state == TrialState.RUNNING]
        size, count = self.options.generation_of(len(self._numbers), self.objectives), len(started)
        following = left[0].number if left else count
        end = 1 + size * max(1, -(-following // size))  # the start is one more in the first generation
        if following >= self.options.evaluations:
            return []
        drawn = [Trial(self.study, trial._trial_id) for trial in left]
        drawn += [self.study.ask() for _ in range(count, end)]
        for trial in drawn:
            for gene in self.genome.genes:
                _draw(trial, gene)
        return [trial for trial in drawn if trial.number < self.options.evaluations]

    def values(self, trial: Trial | FrozenTrial) -> tuple[Scalar, ...]:
        """Values of the genes, in their order."""
        return tuple(trial.params[gene.name] for gene in self.genome.genes)

    def keep(self, trial: Trial, step: int, judged: Judged, twin: int | None) -> None:
        """Keep what came of a trial at one size; a failure, or the largest size, ends it."""
        trial.set_user_attr(f"judged {step}", {**asdict(judged), "twin": twin})
        self._end(trial.number, step, judged)

    def _end(self, number: int, step: int, judged: Judged) -> None:
        """End a trial that has failed, or was judged in full."""
        if judged.failure or step == _STEPS[-1]:
            worst = -math.inf
            gains = [judged.score] if self.objectives == 1 else list(judged.gains) or [worst] * self.objectives
            self.study.tell(number, gains)

    def _end_judged(self) -> None:
        """End the trials of a search that was killed after their results were kept, and before they had ended."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            known = [(step, judged) for step in _STEPS if (judged := self.kept(trial, step))]
            if known:
                self._end(trial.number, *known[-1])

    def kept(self, trial: Trial | FrozenTrial, step: int) -> Judged | None:
        """What is known of a trial at one size."""
        record = trial.user_attrs.get(f"judged {step}")
        return None if record is None else _judged(record)

    def give_up_on(self, trial: Trial, step: int) -> bool:
        """Whether a trial is over because earlier ones do better at this size; then it is told so.

        The rule is that of Optuna's pruner for successive halving, which decides otherwise after a kill.
        """
        known = {number: judged.score for number, _, size, judged in self.results() if size == step}
        scores = sorted(score for number, score in known.items() if number <= trial.number and score > -math.inf)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it was reported before the search was killed
            trial.report(known[trial.number], step)
        if known[trial.number] < scores[-max(1, len(scores) // _KEEPS)]:
            self.study.tell(trial, state=TrialState.PRUNED)
            return True
        return False

    def entries(self) -> list[Entry]:
        """All trials that are over."""
        done = (TrialState.COMPLETE, TrialState.PRUNED)
        return [self._entry(trial) for trial in self.study.get_trials(deepcopy=False, states=done)]

    def _entry(self, trial: FrozenTrial) -> Entry:
        step = max(step for step in _STEPS if f"judged {step}" in trial.user_attrs)
        record = trial.user_attrs[f"judged {step}"]
        pruned = trial.state == TrialState.PRUNED
        return Entry(trial.number, self.values(trial), _judged(record), pruned, record["twin"])

    def results(self) -> Iterator[tuple[int, tuple[Scalar, ...], int, Judged]]:
        """Number, values, size and result of everything that was judged."""
        for trial in self.study.get_trials(deepcopy=False):
            for step in _STEPS:
                if (judged := self.kept(trial, step)) and len(trial.params) == len(self.genome.genes):
                    yield trial.number, self.values(trial), step, judged

    def front(self) -> list[int]:
        """Numbers of the trials that no other one beats in all objectives."""
        counting = {entry.number for entry in self.entries() if entry.counts}
        if self.objectives == 1:
            return []
        return [trial.number for trial in self.study.best_trials if trial.number in counting]

    def importance(self) -> dict[str, float]:
        """Share of each gene in how scores differ; empty if too little is known."""
        counting = {entry.number for entry in self.entries() if entry.counts}
        if len(counting) < 4 or len(self.genome.genes) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        study = optuna.create_study(directions=self.study.directions)
        study.add_trials([trial for trial in self.study.trials if trial.number in counting])
        target = None if self.objectives == 1 else lambda trial: sum(trial.values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
        return {name: float(share) for name, share in found.items()}


def _judged(record: Mapping[str, Any]) -> Judged:
    return Judged(tuple(record["values"]), tuple(record["gains"]), record["seconds"], record["failure"])
