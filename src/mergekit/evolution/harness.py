"""Tasks of lm-eval, and the guard against searching on public benchmarks."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from mergekit.errors import UnsupportedError
from mergekit.recipe import nearest

if TYPE_CHECKING:
    from mergekit.evolution.objectives import Measured

BENCHMARKS = (
    *("mmlu", "hendrycks", "agieval", "gsm8k", "hellaswag", "winogrande", "arc_", "ai2_arc", "truthfulqa", "bigbench"),
    *("piqa", "openbookqa", "leaderboard"),
)
"""How the names of tasks of public benchmarks begin."""


def is_benchmark(task: str) -> bool:
    """Whether models are compared by a task in public; training splits are not meant.

    Example:
        >>> is_benchmark("arc_easy"), is_benchmark("gsm8k_train"), is_benchmark("my_task")
        (True, False, False)
    """
    return task.startswith(BENCHMARKS) and not task.endswith("_train")


@dataclass(frozen=True, slots=True)
class Tasks:
    """How tasks of lm-eval are run.

    Parameters:
        limit: examples of each task, or None for all.
        shots: examples in the prompt, or None for the task's own number.
        shuffle: whether examples are drawn from all over a task, rather than from its beginning.
        chat: apply the tokenizer's chat template, if it has one.
        multiturn: write examples as turns of a conversation.
        folders: where further tasks are looked for.
        seed: of the shuffle, and of examples in the prompt.
    """

    limit: int | None = None
    shots: int | None = None
    shuffle: bool = False
    chat: bool = True
    multiturn: bool = True
    folders: tuple[Path, ...] = ()
    seed: int = 0


@lru_cache(maxsize=2)
def known_tasks(folders: tuple[Path, ...], shipped: bool = True) -> Any:
    """lm-eval's manager of tasks.

    Parameters:
        folders: where further tasks are looked for.
        shipped: look among the thousands that come with lm-eval too, which takes many seconds.

    Raises:
        UnsupportedError: lm-eval is not installed.
    """
    try:
        with _hushed():
            from lm_eval.tasks import TaskManager

            return TaskManager(include_path=[str(folder) for folder in folders] or None, include_defaults=shipped)
    except ImportError as error:
        raise missing("tasks of lm-eval", "lm-eval") from error


def missing(what: str, package: str) -> UnsupportedError:
    """An error that says which extra brings what is needed."""
    return UnsupportedError(f"{what} need {package}, which is not installed", hint='`pip install "mergekit[evolve]"`')


def refuse_unknown(names: Sequence[str], tasks: Tasks) -> None:
    """Refuse names of tasks that lm-eval does not know.

    Raises:
        UnsupportedError: there is no such task, or no lm-eval.
    """
    if {*names} <= {*known_tasks(tasks.folders, shipped=not tasks.folders).all_tasks}:
        return
    known = known_tasks(tasks.folders).all_tasks
    for name in names:
        if name not in known:
            close = nearest(name, known)
            expected = "a task or group of lm-eval, or one in a folder of `--task-search-path`"
            raise UnsupportedError(f"there is no task `{name}`", expected=expected, hint=close and f"`{close}`")


@final
@dataclass(slots=True)
class Harness:
    """Tasks that are loaded once and run with one model after the other."""

    tasks: Tasks
    _loaded: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, metric: str, share: float, model: Any, tokenizer: Any, batch: int) -> Measured:
        """The metric of a task.

        Parameters:
            name: of the task.
            metric: with its filter.
            share: of the examples, above 0 to 1.
            model: of transformers.
            tokenizer: of transformers.
            batch: examples that are looked at together.

        Raises:
            UnsupportedError: the task has no such metric, or the model has no tokenizer.
        """
        from mergekit.evolution.objectives import Measured

        if tokenizer is None:
            raise UnsupportedError("tasks of lm-eval need a tokenizer, and the merge has none")
        found = self._evaluated(name, share, model, tokenizer, batch)
        results: dict[str, Any] = found["results"].get(name)
        if results is None:
            what = f"`{name}` is a tag: there is no score of all its tasks together"
            raise UnsupportedError(what, expected="a task or a group", hint=f"its tasks: {', '.join(found['results'])}")
        if not isinstance(results.get(metric), int | float):
            numbers = [
                each for each, value in results.items() if isinstance(value, int | float) and "stderr" not in each
            ]
            close = nearest(metric, numbers)
            what = f"task `{name}` has no metric `{metric}`"
            raise UnsupportedError(what, expected=f"one of {', '.join(numbers)}", hint=close and f"`{close}`")
        directions = found["higher_is_better"].get(name) or {}
        return Measured(float(results[metric]), directions.get(metric.partition(",")[0]) is not False)

    def _evaluated(self, name: str, share: float, model: Any, tokenizer: Any, batch: int) -> Any:
        with _hushed(), _unsurveyed():
            from lm_eval.evaluator import simple_evaluate
            from lm_eval.models.huggingface import HFLM

            judged = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, device=str(model.device))
            return simple_evaluate(
                model=judged,
                tasks=self._task(name),
                task_manager=known_tasks(self.tasks.folders, shipped=not self.tasks.folders),  # or it makes its own
                num_fewshot=self.tasks.shots,
                limit=self._limit(share),
                log_samples=False,
                bootstrap_iters=0,
                apply_chat_template=self.tasks.chat and tokenizer.chat_template is not None,
                fewshot_as_multiturn=self.tasks.multiturn,
                fewshot_random_seed=self.tasks.seed,
            )

    def _limit(self, share: float) -> int | float | None:
        if self.tasks.limit is None:
            return None if share == 1 else share
        return max(1, round(self.tasks.limit * share))

    def _load(self, name: str) -> Any:
        """A task from the folders by themselves, unless it is made of others."""
        with contextlib.suppress(Exception):
            if self.tasks.folders:
                return known_tasks(self.tasks.folders, shipped=False).load([name])
        return known_tasks(self.tasks.folders).load([name])

    def _task(self, name: str) -> list[Any]:
        if name not in self._loaded:
            task = self._load(name)
            if self.tasks.shuffle:
                for each in task["tasks"].values():
                    each.dataset = each.dataset.shuffle(seed=self.tasks.seed)
            self._loaded[name] = [*task["groups"].values()] or [*task["tasks"].values()]
        found: list[Any] = self._loaded[name]
        return found


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without lm-eval's log, its bars, what programs say that it runs, and a change of Python's random state."""
    state, level = random.getstate(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with _errors_nowhere(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        random.setstate(state)


@contextlib.contextmanager
def _unsurveyed() -> Iterator[None]:
    """Without lm-eval's survey of the machine, which takes a second of every candidate's time."""
    from lm_eval import evaluator

    kept = getattr(evaluator, "add_env_info", None)
    if kept is None:
        yield
        return
    evaluator.add_env_info = lambda _results: None
    try:
        yield
    finally:
        evaluator.add_env_info = kept


@contextlib.contextmanager
def _errors_nowhere() -> Iterator[None]:
    """Standard error of this process, and of those that it starts, goes nowhere: lm-eval asks `git` who we are."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
