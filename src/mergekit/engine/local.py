"""Tensor tasks on the threads of this machine."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from queue import SimpleQueue
from typing import TypeVar, final

from mergekit.engine.at_hand import Measure, Reader, Writer
from mergekit.engine.compute import Compute
from mergekit.engine.worker import Span, Worker
from mergekit.errors import NonFiniteError
from mergekit.methods import Block, Search
from mergekit.methods.contract import Stats
from mergekit.methods.reductions import exact_sums
from mergekit.plan import Memory, Plan, TensorTask

_T = TypeVar("_T")

_SAMPLE, _PLACES = 16384, 4  # entries that a reduction sees as a sample, and from how many places at least
_PER_WORKER = 4  # a tensor of more than this fraction of a worker's share is merged by all workers together


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished tensor.

    Parameters:
        task: index in the plan.
        norm: Euclidean norm of the output.
        distance: norm of its difference from the first operand (the base, if there is one).
        reference: norm of that operand.
        broken: entries that are infinite or not a number.
        checksum: of its bytes, unsigned; see :mod:`mergekit.kernels.checksum`.
        seconds: from its start to its end.
    """

    task: int
    norm: float
    distance: float
    reference: float
    broken: int
    checksum: int
    seconds: float


@final
@dataclass(frozen=True, slots=True)
class Recall:
    """What reductions have found in the last merge of each tensor, for merges that differ in little else."""

    _found: dict[str, tuple[object, Stats]] = field(default_factory=dict)

    def stats(self, task: TensorTask, reduce: Callable[[TensorTask], Stats]) -> Stats:
        """The stats of a tensor: those of the last merge, if they must be the same."""
        own = task.method.reduced(), task.operands, task.based, task.target
        known, stats = self._found.get(task.out.name, (None, {}))
        if known != own:
            stats = reduce(task)
            self._found[task.out.name] = own, stats
        return stats


@final
@dataclass(frozen=True, slots=True)
class Team:
    """Workers that share one tensor, each with a span of its own; alone, without threads, if there is one."""

    workers: Sequence[Worker]
    pool: ThreadPoolExecutor | None = None
    recall: Recall | None = None

    def spans(self, task: TensorTask) -> list[Span]:
        """The tensor cut into one span of whole grains per worker."""
        count, size, grain = task.out.count, len(self.workers), task.target.grain
        grains = -(-count // grain)
        edges = [min(count, grain * (grains * index // size)) for index in range(size + 1)]
        edges[-1] = count
        return [Span(start, stop) for start, stop in pairwise(edges)]

    def each(self, task: TensorTask, work: Callable[[Worker, Span], _T]) -> list[_T]:
        """Do the same with every span; results in the order of the spans."""
        spans = self.spans(task)
        if self.pool is None:
            return [work(worker, span) for worker, span in zip(self.workers, spans, strict=True)]
        return list(self.pool.map(work, self.workers, spans))

    def run(self, index: int, task: TensorTask) -> Outcome:
        """Make one tensor from beginning to end."""
        began = time.perf_counter()
        self.each(task, lambda worker, span: worker.prefetch(task, span))
        operand = task.copied
        if operand is not None:
            measures = self.each(task, lambda worker, span: worker.copy(task, operand, span))
        else:
            stats = self._stats(task) if task.out.count else {}
            measures = self.each(task, lambda worker, span: worker.merge(task, span, stats))
        return _outcome(index, measures, time.perf_counter() - began)

    def _stats(self, task: TensorTask) -> Stats:
        return self.recall.stats(task, self._reduce) if self.recall else self._reduce(task)

    def _reduce(self, task: TensorTask) -> Stats:
        def sample() -> list[Block]:
            return self.workers[0].sample(task, max(_PLACES, _SAMPLE // task.target.grain))

        stats: dict[str, object] = {}
        for reduction in task.method.reductions():
            search = reduction.begin(task.target, sample, stats)
            while not search.done:
                search.close(self._sweep(task, search))
            stats[reduction.name] = search.result()
        return stats

    def _sweep(self, task: TensorTask, search: Search) -> list[object]:
        return self.each(task, lambda worker, span: worker.sweep(task, span, search))


def _outcome(index: int, measures: Sequence[Measure], seconds: float) -> Outcome:
    norm, distance, reference = map(math.sqrt, exact_sums([part.sums for part in measures]))
    broken, checksum = sum(part.broken for part in measures), sum(part.checksum for part in measures)
    return Outcome(index, norm, distance, reference, broken, checksum % 2**64, seconds)


def crew(
    memory: Memory, files: Reader, writer: Writer, compute: Compute, advance: Callable[[int], None]
) -> list[Worker]:
    """As many workers as there is memory for, those of several devices in turn.

    Large tensors are cut into spans of equal size, and each worker takes the next small one when it is done with one:
    so the bytes are spread evenly over the devices, and go to the faster ones where they are not equally fast.

    Parameters:
        memory: sizes of the buffers.
        files: the inputs.
        writer: the output.
        compute: where the mathematics runs.
        advance: called from any thread with bytes read and written.
    """
    return [Worker(memory, files, writer, seat, advance) for seat in compute.seats(memory.workers)]


def execute(
    plan: Plan,
    files: Reader,
    writer: Writer,
    compute: Compute,
    advance: Callable[[int], None],
    finished: Collection[int] = (),
) -> Iterator[Outcome]:
    """Do the tasks of a plan, in any order.

    Large tensors come first, one after the other, each by all workers together; then every worker takes small ones.

    Parameters:
        plan: what to do.
        files: the inputs.
        writer: the output.
        compute: where the mathematics runs.
        advance: called from any thread with bytes read and written.
        finished: tasks that are done already, by their index.

    Raises:
        NonFiniteError: an output tensor holds NaN or infinity.
    """
    workers = crew(plan.memory, files, writer, compute, advance)
    wanted = [index for index in range(len(plan.tasks)) if index not in finished]
    order = sorted(wanted, key=lambda index: -plan.tasks[index].read_bytes)
    threshold = plan.read_bytes // (_PER_WORKER * len(workers))
    large = [index for index in order if len(workers) > 1 and plan.tasks[index].read_bytes > threshold]
    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            for index in large:
                yield _finite(plan, Team(workers, pool).run(index, plan.tasks[index]))
            for outcome in _share(plan, order[len(large) :], workers, pool):
                yield _finite(plan, outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is merged now ends; what waits is not begun
            raise


def _share(plan: Plan, order: Sequence[int], workers: Sequence[Worker], pool: ThreadPoolExecutor) -> Iterator[Outcome]:
    """Each worker takes the next tensor when it is done with one."""
    waiting: deque[int] = deque(order)
    done: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()

    def run(worker: Worker) -> None:
        try:
            for index in _taken(waiting):
                done.put(Team([worker]).run(index, plan.tasks[index]))
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)

    try:
        for _ in [pool.submit(run, worker) for worker in workers]:
            while (found := done.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
    finally:
        waiting.clear()


def _taken(waiting: deque[int]) -> Iterator[int]:
    """One after the other, as others take them too, until none is left."""
    with suppress(IndexError):
        while True:
            yield waiting.popleft()


def _finite(plan: Plan, outcome: Outcome) -> Outcome:
    if outcome.broken:
        task = plan.tasks[outcome.task]
        raise NonFiniteError(
            f"{outcome.broken} of {task.out.count} entries of `{task.out.name}` are infinite or not a number",
            place=", ".join(str(plan.models[operand.model].ref) for operand in task.operands),
            hint="check these models with `mergekit verify`, and the weights and `out_dtype` of the recipe",
        )
    return outcome
