"""What a merge would do, for all commands that can say so: ``mergekit plan``, and others with ``--plan``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit.cli.output import Output

if TYPE_CHECKING:
    from mergekit.plan import Plan
    from mergekit.preview import Estimate, Job, Spread


@dataclass(frozen=True, slots=True)
class Machines:
    """What is asked about machines.

    Parameters:
        nodes: of a cluster; None for this one alone.
        disk_rate: bytes per second that the storage gives each of them; None to measure this one's.
        network_rate: bytes per second of each one's link; None for 10 Gbit/s.
    """

    nodes: int | None = None
    disk_rate: int | None = None
    network_rate: int | None = None


HERE = Machines()


def look_ahead(job: Job, output: Output, machines: Machines = HERE) -> None:
    """Say what a merge of models would do, even if there is too little room for it.

    Parameters:
        job: the merge.
        output: where it is said.
        machines: where the merge would be carried out.

    Raises:
        MergekitError: something else stands in the way.
    """
    from mergekit.preview import check_merge
    from mergekit.report.record import in_units

    found = check_merge(job, room=False)
    plan = found.result()
    scarce = [space for space in found.spaces if space.needed > space.free]
    output.note(
        f"{in_units(space.needed)} are needed in {space.folder}, and {in_units(space.free)} are free"
        for space in scarce
    )
    output.note(found.notices)
    show_plan(plan, job.out, output, job.device, machines)


def show_plan(
    plan: Plan, out: Path | None, output: Output, device: str | None = None, machines: Machines = HERE
) -> None:
    """Say what a merge would do, and about how long it would take.

    Parameters:
        plan: the merge.
        out: what it would make, or None if that is not known yet.
        output: where it is said.
        device: as :func:`mergekit.engine.open_device` takes it.
        machines: where it would be carried out.
    """
    from mergekit.preview import estimate, spread
    from mergekit.preview.nodes import NETWORK_RATE

    output.warn(plan.findings.warnings)
    output.note(plan.findings.notices)
    cost = estimate(plan, out, device, machines.disk_rate)
    many = spread(plan, cost, machines.nodes, machines.network_rate or NETWORK_RATE) if machines.nodes else None
    where = [("output", f"{click.format_filename(out)} (not written)")] if out is not None else []
    rows = [*_rows(plan, cost), *(_rows_of_nodes(many, cost) if many else ())]
    output.finish([*rows, *where], _record(plan, out, cost, many))


def _rows(plan: Plan, cost: Estimate) -> Iterator[tuple[str, str]]:
    from mergekit.report.record import in_units

    parameters = sum(task.out.count for task in plan.tasks)
    yield "method", plan.method.name
    yield "models", ", ".join(str(model.ref) for model in plan.models)
    yield "tensors", f"{len(plan.tasks):,} with {parameters:,} parameters"
    if left := sum(len(entry.tensors) for entry in plan.leftovers):
        yield "left over", f"{left:,} tensors"
    yield "reads", in_units(plan.read_bytes) + _passes(*cost.passes)
    for own in cost.reads:
        yield "", f"{in_units(own.nbytes)} of {own.model}{', from the hub' if own.streamed else ''}"
    yield "writes", f"{in_units(plan.write_bytes)} in {len(plan.shards)} file{'s' * (len(plan.shards) != 1)}"
    yield "memory", f"at most {in_units(plan.memory.peak)}"
    yield "threads", f"{plan.memory.workers}"
    yield "time", _time(cost)


def _rows_of_nodes(many: Spread, cost: Estimate) -> Iterator[tuple[str, str]]:
    from mergekit.report.record import in_units

    shared, collected = many.shared, many.collected
    yield "nodes", f"{many.nodes} like this machine, in {many.batches:,} batches"
    yield "", f"each reads up to {in_units(many.read)} and writes up to {in_units(many.written)}"
    if shared.seconds and collected.seconds and cost.read_rate and cost.write_rate:
        rates = f"{in_units(int(cost.read_rate))}/s, writes {in_units(int(cost.write_rate))}/s"
        yield "", f"a node reads {rates}, its link carries {in_units(int(many.network_rate))}/s"
        for name, way in (("shared", shared), ("collected", collected)):
            span = " to ".join(dict.fromkeys(map(duration, way.seconds or ())))
            yield name, f"about {span}; {in_units(way.link)} through the busiest link"


def _passes(least: int, most: int) -> str:
    """How often tensors are gone over; further passes mostly come from the page cache."""
    if most == 1:
        return ", once"
    return f", gone over at least {most if least == most else f'{least} to {most}'} times"


def _time(cost: Estimate) -> str:
    if cost.seconds is None:
        return f"not known: {cost.unknown}"
    span = " to ".join(dict.fromkeys(map(duration, cost.seconds)))
    without = f", {cost.unknown}" if cost.unknown else ""
    return f"about {span}{without} (a rough guess from a second of measuring this machine)"


def duration(seconds: float) -> str:
    """A time in one unit, roughly.

    Example:
        >>> duration(0.34), duration(42.7), duration(200), duration(9000)
        ('1 s', '43 s', '4 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{-(-seconds // 60):.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _record(plan: Plan, out: Path | None, cost: Estimate, many: Spread | None) -> dict[str, object]:
    return {
        "out": str(out) if out is not None else None,
        "plan": {
            "method": plan.method.name,
            "models": [str(model.ref) for model in plan.models],
            "tensors": [
                {
                    "name": task.out.name,
                    "dtype": task.out.dtype.name,
                    "shape": task.out.shape,
                    "models": [operand.model for operand in task.operands],
                }
                for task in plan.tasks
            ],
            "left_over": [
                {"model": entry.model, "reason": entry.reason, "tensors": entry.tensors} for entry in plan.leftovers
            ],
            "bytes_read": plan.read_bytes,
            "bytes_written": plan.write_bytes,
            "shards": len(plan.shards),
            "memory": plan.memory.peak,
            "threads": plan.memory.workers,
            "estimate": asdict(cost),
            **({"nodes": asdict(many)} if many else {}),
            "warnings": [str(problem) for problem in plan.findings.warnings],
            "notices": plan.findings.notices,
        },
    }
