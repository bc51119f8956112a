"""Tensors of one merge as operands of another, without a model on disk between both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from mergekit.checkpoint import Extent, TensorSpec
from mergekit.checkpoint.reading import Buffer, octets
from mergekit.engine.compute import Fused
from mergekit.engine.worker import Span, Worker
from mergekit.errors import Findings, NonFiniteError
from mergekit.methods.contract import Stats
from mergekit.plan import Memory, Model, Operand, Plan, PlanOptions, TensorTask
from mergekit.plan.memory import fit_tasks
from mergekit.plan.models import streaming_room
from mergekit.plan.views import Access, Pieces, StoredView, View
from mergekit.report import model_card

_STRIPE = 1 << 16  # entries of each operand that are merged at a time
_WIDE = 8  # bytes for an entry: raw, and as it is computed with
_SAMPLED = 4  # grains that a reduction sees as a sample, at least
_SAMPLE = 1 << 14  # entries of that


@final
@dataclass(frozen=True, slots=True, eq=False)
class Merged(StoredView):
    """A tensor that another merge makes, made stretch by stretch when it is read.

    Its bytes are those that the merge would write: rounded to its dtype, which is what another merge would read back.
    What must be known about the whole tensor first is found out by every worker for itself, and kept while the tensor
    is being worked on.

    Parameters:
        stage: the name of the other merge, for messages.
        task: how it makes the tensor.
    """

    stage: str
    task: TensorTask
    spec: TensorSpec = field(init=False)
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.task.out)
        object.__setattr__(self, "names", (self.task.out.name,))

    @property
    def nbytes(self) -> int:
        """What the other merge reads for it."""
        return self.task.read_bytes

    @property
    def kept_bytes(self) -> int:
        """Buffers of the other merge, and what it keeps."""
        rows, stripe = len(self.task.operands) + 2, max(_STRIPE, self.task.target.grain)
        return rows * stripe * _WIDE + self.task.kept_bytes + self.task.method.held(self.task.out.shape)

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Those of all operands of the other merge."""
        for operand in self.task.operands:
            yield from operand.view.extents(start, stop)

    def read_bytes(self, access: Access, start: int, stop: int, into: Any) -> None:
        """Whole grains around the entries are merged, and cut to what is asked for."""
        copied = self.task.copied
        if copied is not None and len(self.task.operands) == 1 and isinstance(copied.view, StoredView):
            copied.view.read_bytes(access, start, stop, into)
        else:
            access.kept(self, lambda: _Bench.at(self, access)).fill(start, stop, into)


@final
@dataclass(slots=True)
class _Bench:
    """A worker within a worker: reads what that one reads, and writes into its buffer.

    Parameters:
        view: the tensor that is made.
        access: what the operands are read with.
    """

    view: Merged
    access: Access
    worker: Worker = field(init=False)
    stats: Stats = field(init=False)
    _into: Any = None
    _first: int = 0

    @classmethod
    def at(cls, view: Merged, access: Access) -> _Bench:
        """A bench that knows what has to be known about the whole tensor."""
        bench = cls(view, access)
        bench.worker = Worker(Memory(1, _STRIPE, 0), bench, bench, Fused(), _told_to_nobody)
        bench.stats = bench._reduced() if view.task.copied is None else {}
        return bench

    def _reduced(self) -> Stats:
        task, worker, stats = self.view.task, self.worker, dict[str, object]()
        chunks = max(_SAMPLED, _SAMPLE // task.target.grain)
        for reduction in task.method.reductions():
            search = reduction.begin(task.target, lambda: worker.sample(task, chunks), stats)
            while not search.done:
                search.close([worker.sweep(task, Span(0, task.out.count), search)])
            stats[reduction.name] = search.result()
        return stats

    def fill(self, start: int, stop: int, into: Any) -> None:
        """Make the entries [start, stop), as bytes."""
        task, bits, grain = self.view.task, self.view.spec.dtype.bits, self.view.task.target.grain
        span = Span(start // grain * grain, min(-(-stop // grain) * grain, task.out.count))
        self._into, self._first = into, start * bits // 8
        copied = task.copied
        if copied is not None:
            self.worker.copy(task, copied, span)
        elif self.worker.merge(task, span, self.stats).broken:
            raise NonFiniteError(
                f"entries of `{task.out.name}` are infinite or not a number after the merge `{self.view.stage}`",
                hint="`--keep`, which writes and checks every merge by itself",
            )

    def read(self, extent: Extent, into: Buffer) -> None:
        """As the worker outside."""
        self.access.read(extent, into)

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """As the worker outside."""
        self.access.gather(file, starts, places, nbytes, into)

    def descriptor(self, file: Path) -> None:
        """None: the worker outside knows where it is."""

    def prefetch(self, extent: Extent) -> None:
        """Nothing: the worker outside has asked for it."""

    def outlet(self, name: str) -> None:
        """None: it is no file."""

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Take what belongs into the buffer."""
        del name
        source, first = octets(data), offset - self._first
        begin, end = max(0, first), min(len(self._into), first + len(source))
        if begin < end:
            memoryview(self._into)[begin:end] = source[begin - first : end - first]


def _told_to_nobody(nbytes: int) -> None:
    """The worker outside counts what is read."""


def misfit(plan: Plan, index: int, before: Plan) -> str | None:
    """Why the tensors of a merge cannot be made while another one reads them; None if they can.

    Parameters:
        plan: of the merge that reads.
        index: the other merge among its models.
        before: the plan of that one.
    """
    tasks = {task.out.name: task for task in before.tasks}
    views = [operand.view for task in plan.tasks for operand in task.operands if operand.model == index]
    for view in views:
        task = tasks.get(view.spec.name)
        if not isinstance(view, Pieces) or task is None or view.spec != task.out:
            return f"`{view.spec.name}` is changed before it is merged"
        if not type(task.method).__module__.startswith("mergekit."):
            return f"`{task.method.name}` is none of mergekit's own methods"
    name, count = Counter(view.spec.name for view in views).most_common(1)[0] if views else ("", 0)
    return f"`{name}` is read {count} times" if count > 1 else None


@dataclass(frozen=True, slots=True)
class Upstream:
    """A merge whose result is not written.

    Parameters:
        name: what other merges call it.
        folder: where it would be.
        plan: how it is made.
    """

    name: str
    folder: Path
    plan: Plan

    def seen_as(self, model: Model) -> Model:
        """A model that was opened by a draft, without the draft."""
        card = partial(model_card, self.plan, self.name)
        checkpoint = replace(model.checkpoint, root=self.folder, shards=(), texts={"README.md": card})
        return replace(model, checkpoint=checkpoint)


def streamed(plan: Plan, before: Mapping[int, Upstream], options: PlanOptions) -> Plan:
    """A plan that makes tensors of other merges when it reads them.

    Parameters:
        plan: the merge.
        before: the other merges, by their indices among its models.
        options: of planning.

    Raises:
        BudgetError: the merge does not fit the memory it may use.
    """
    made = {
        (index, task.out.name): Merged(other.name, task) for index, other in before.items() for task in other.plan.tasks
    }

    def seen(operand: Operand) -> Operand:
        view: View = made.get((operand.model, operand.view.spec.name), operand.view)
        return replace(operand, view=view)

    tasks = tuple(replace(task, operands=tuple(map(seen, task.operands))) for task in plan.tasks)
    models = [before[i].seen_as(model) if i in before else model for i, model in enumerate(plan.models)]
    for model in (model for other in before.values() for model in other.plan.models):
        models += [] if any(model.ref == known.ref for known in models) else [model]
    findings = Findings(warnings=list(plan.findings.warnings), notices=list(plan.findings.notices))
    for other in before.values():
        findings.extend(other.plan.findings)
        findings.notice(f"`{other.name}` is merged by {other.plan.method.name} on the way, and not written")
    memory = fit_tasks(tasks, options.workers, options.max_memory, streaming_room(models, options.hub))
    return replace(plan, tasks=tasks, models=tuple(models), findings=findings, memory=memory)
