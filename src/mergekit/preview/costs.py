"""What a merge will read, write and take, from the plan; and how long that may take, from a short measurement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit.engine import open_device
from mergekit.errors import MergekitError
from mergekit.plan import Plan, TensorTask
from mergekit.preview.measure import merging_seconds, reading_rate, writing_rate
from mergekit.preview.space import nearest_folder

_BEGIN = 0.5  # seconds of every process: imports, kernels, config and report
_LOW, _HIGH = 0.7, 2.0  # what merges take of that which is estimated


@dataclass(frozen=True, slots=True)
class Reads:
    """What is read of one model.

    Parameters:
        model: as the recipe names it.
        nbytes: bytes of its tensors that are read, each counted once.
        swept: the same, counted as often as methods go over them, at least.
        streamed: whether they are read from the hub.
    """

    model: str
    nbytes: int
    swept: int
    streamed: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a merge will cost.

    Parameters:
        reads: one for each model that is read.
        passes: times that tensors are gone over, from the least to the most, at least.
        read_rate, write_rate: bytes per second of the file systems in question; None if not measured.
        merging: seconds that computing takes, if reading and writing took none; None if that cannot be measured.
        seconds: from the least to the most, a rough guess; None if something cannot be measured.
        unknown: why there is no guess, or what is not in it; empty if there is nothing to say.
    """

    reads: tuple[Reads, ...]
    passes: tuple[int, int]
    read_rate: float | None
    write_rate: float | None
    merging: float | None
    seconds: tuple[float, float] | None
    unknown: str = ""


def passes(task: TensorTask) -> int:
    """How often the operands of a task are gone over, at least: once for each reduction, and once to merge.

    Parameters:
        task: of any method.
    """
    return 1 if task.copied is not None else 1 + len(task.method.reductions())


def reads_of(plan: Plan) -> tuple[Reads, ...]:
    """What is read of each model of a plan that is read at all."""
    once, swept = [0] * len(plan.models), [0] * len(plan.models)
    for task in plan.tasks:
        times = passes(task)
        for operand in task.operands:
            once[operand.model] += operand.view.nbytes
            swept[operand.model] += operand.view.nbytes * times
    return tuple(
        Reads(str(model.ref), once[index], swept[index], bool(model.checkpoint.remote))
        for index, model in enumerate(plan.models)
        if once[index]
    )


def guess(parts: Sequence[float]) -> tuple[float, float]:
    """Seconds from the least to the most of a process that does several things at a time.

    Parameters:
        parts: seconds that each of them takes alone.
    """
    return _BEGIN + _LOW * max(parts), _BEGIN + _HIGH * sum(parts)


def estimate(
    plan: Plan, out: Path | None = None, device: str | None = None, disk_rate: float | None = None
) -> Estimate:
    """Add up what a merge will do, and measure for about a second how fast this machine does it.

    Parameters:
        plan: the merge.
        out: where it would be written; the current folder if None.
        device: as :func:`mergekit.engine.open_device` takes it.
        disk_rate: bytes per second of reading and of writing; None to measure both.
    """
    times = {passes(task) for task in plan.tasks} or {1}
    span = min(times), max(times)
    read = disk_rate or reading_rate(_local_files(plan))
    write = disk_rate or writing_rate(nearest_folder(out or Path()))
    reads = reads_of(plan)
    try:
        merging = merging_seconds(plan, open_device(device))
    except MergekitError as error:
        return Estimate(reads, span, read, write, None, None, f"the method cannot be measured: {error.problem.what}")
    if write is None:
        return Estimate(reads, span, read, write, merging, None, "nothing can be written to try how fast that is")
    local = sum(own.nbytes for own in reads if not own.streamed)
    parts = [merging, local / read if read else 0.0, plan.write_bytes / write]
    remote = "without what is read from the hub" if any(own.streamed for own in reads) else ""
    return Estimate(reads, span, read, write, merging, guess(parts), remote)


def _local_files(plan: Plan) -> Iterable[Path]:
    """The largest weight file of each file system."""
    largest: dict[int, tuple[int, Path]] = {}
    for model in plan.models:
        for file in model.checkpoint.shards:
            if file not in model.checkpoint.remote:
                state = file.stat()
                largest[state.st_dev] = max(largest.get(state.st_dev, (0, file)), (state.st_size, file))
    return [file for _, file in largest.values()]
