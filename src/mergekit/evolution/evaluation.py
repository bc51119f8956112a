"""How candidates become scores: the contract that local processes and clusters share."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import final

from mergekit.errors import MergekitError, UnsupportedError
from mergekit.evolution.candidate import Bench, Loading
from mergekit.evolution.objectives import Objective


@dataclass(frozen=True, slots=True)
class Job:
    """A candidate to be judged.

    Parameters:
        recipe: its text.
        share: of all text and examples, above 0 to 1.
    """

    recipe: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of a job.

    Parameters:
        values: one for each objective, as it was measured; none after a failure.
        gains: what each adds to the score; more is better.
        seconds: from its start to its end.
        failure: why there are no values, or None.
    """

    values: tuple[float, ...]
    gains: tuple[float, ...]
    seconds: float
    failure: str | None = None

    @property
    def score(self) -> float:
        """Sum of all gains; minus infinity after a failure."""
        return -math.inf if self.failure else sum(self.gains)


class Evaluator(ABC):
    """Judges candidates. It can be pickled before its first use: every worker has a copy."""

    @abstractmethod
    def judge(self, job: Job) -> Judged:
        """Merge and score a candidate; whatever goes wrong is a failure of this candidate, and not raised."""

    @abstractmethod
    def prepare(self, threads: int | None, device: str | None, sharing: int = 1) -> Evaluator:
        """A copy for one of several workers.

        Parameters:
            threads: that it may use; None to leave them as they are.
            device: where its models run; None to leave it as it is.
            sharing: workers that share the memory of its machine.
        """


@final
@dataclass(slots=True)
class RecipeEvaluator(Evaluator):
    """Merges a recipe and measures its objectives, one after the other.

    Parameters:
        objectives: what is measured.
        loading: how candidates are merged and put to work.
    """

    objectives: tuple[Objective, ...]
    loading: Loading
    _bench: Bench | None = field(default=None, repr=False)

    def judge(self, job: Job) -> Judged:
        """Merge and score a candidate."""
        began = time.perf_counter()
        if self._bench is None:
            self._bench = Bench(self.loading)
        try:
            with self._bench.candidate(job.recipe) as candidate:
                found = [objective.measure(candidate, job.share) for objective in self.objectives]
            for objective, measured in zip(self.objectives, found, strict=True):
                if not math.isfinite(measured.value):
                    raise UnsupportedError(f"{objective.name} is {measured.value}")
        except Exception as error:  # one candidate must not end a search of hours
            return Judged((), (), time.perf_counter() - began, _reason(error))
        gains = tuple(own.gain(measured) for own, measured in zip(self.objectives, found, strict=True))
        return Judged(tuple(measured.value for measured in found), gains, time.perf_counter() - began)

    def prepare(self, threads: int | None, device: str | None, sharing: int = 1) -> RecipeEvaluator:
        """A copy for one of several workers."""
        own, count = self.loading, threads or self.loading.threads
        merge = replace(own.merge, num_threads=count or own.merge.num_threads)
        room = own.directions / sharing
        prepared = replace(own, merge=merge, threads=count, device=device or own.device, directions=room)
        return RecipeEvaluator(self.objectives, prepared)


def _reason(error: Exception) -> str:
    if isinstance(error, MergekitError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
