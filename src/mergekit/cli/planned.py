"""What a plan says, for commands that only make one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit.cli.output import Output

if TYPE_CHECKING:
    from mergekit.plan import Plan


def show_plan(plan: Plan, out: Path, output: Output) -> None:
    """Say what a merge would do.

    Parameters:
        plan: the merge.
        out: what it would make.
        output: where it is said.
    """
    output.warn(plan.findings.warnings)
    output.note(plan.findings.notices)
    output.finish([*_rows(plan), ("output", f"{click.format_filename(out)} (not written)")], _record(plan, out))


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    from mergekit.report.record import in_units

    parameters = sum(task.out.count for task in plan.tasks)
    yield "method", plan.method.name
    yield "models", ", ".join(str(model.ref) for model in plan.models)
    yield "tensors", f"{len(plan.tasks):,} with {parameters:,} parameters"
    if left := sum(len(entry.tensors) for entry in plan.leftovers):
        yield "left over", f"{left:,} tensors"
    yield "reads", in_units(plan.read_bytes)
    yield "writes", f"{in_units(plan.write_bytes)} in {len(plan.shards)} file{'s' * (len(plan.shards) != 1)}"
    yield "memory", f"at most {in_units(plan.memory.peak)}"


def _record(plan: Plan, out: Path) -> dict[str, object]:
    return {
        "out": str(out),
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
            "memory": plan.memory.peak,
            "warnings": [str(problem) for problem in plan.findings.warnings],
            "notices": plan.findings.notices,
        },
    }
