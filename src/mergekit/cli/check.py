"""``mergekit check``: what stands in the way of a merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit.cli.merge import config_file, in_json, job_of, job_options, of_merges, read_config
from mergekit.cli.options import Command, ignored_flags
from mergekit.cli.output import Output, failure_of, problem_record

if TYPE_CHECKING:
    from mergekit.plan import Plan
    from mergekit.preview import Check, Space


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@click.argument("out_path", type=click.Path(path_type=Path), required=False)
@in_json
@of_merges
@click.help_option("-h", "--help")
def check(config_file: str, out_path: Path | None, as_json: bool, **flags: Any) -> None:
    """Say everything that stands in the way of a merge, at once and before a weight is read.

    CONFIG_FILE is a recipe, or - for standard input; OUT_PATH is where the merge would go, which may be left out.
    Looked at are the recipe, names, shapes and dtypes of all tensors, layers, vocabularies, ties, tokenizer and chat
    template, room on the disk, memory and the device. Of models on the hub nothing but headers and small files is
    downloaded. The exit code is that of the merge; all options of `mergekit yaml` are understood.
    """
    output = Output(as_json)
    with output.failures():
        output.note(ignored_flags())
        _check(config_file, out_path, flags, output)


def _check(config_file: str, out: Path | None, flags: dict[str, Any], output: Output) -> None:
    from mergekit.preview import check_merge
    from mergekit.report.contents import alignment_rows

    text, name = read_config(config_file)
    options = job_options(flags)
    job = job_of(text, name, out, options)
    found = check_merge(replace(job, planning=replace(job.planning, preview=True)), room=options.room)
    findings = found.attempt.problems.findings
    output.warn(() if found.attempt.problems.strict else findings.warnings)
    output.note([*findings.notices, *found.notices])
    if (error := found.attempt.problems.error) is not None:
        output.note(
            f"vocabulary of {told}" for _, told in alignment_rows(found.attempt.models, found.attempt.alignments)
        )
        output.fail(failure_of(error), {"check": record(found)})
    output.finish(_rows(found.result(), found, options.device), {"check": record(found)})


def record(found: Check) -> dict[str, object]:
    """A check for programs.

    Parameters:
        found: what came of it.
    """
    attempt = found.attempt
    findings, plan = attempt.problems.findings, attempt.plan
    return {
        "errors": [
            {"type": type(error).__name__, "exit_code": error.exit_code, **problem_record(problem)}
            for error in found.errors
            for problem in error.problems
        ],
        "warnings": [problem_record(problem) for problem in findings.warnings],
        "notices": findings.notices,
        "vocabularies": [
            {"model": str(attempt.models[index].ref), **own.as_json()} for index, own in attempt.alignments.items()
        ],
        "disks": [_disk(space) for space in found.spaces],
        "bytes_written": attempt.written,
        "memory": plan.memory.peak if plan else None,
    }


def _disk(space: Space) -> Mapping[str, object]:
    return {"folder": str(space.folder), "needed": space.needed, "free": space.free}


def _rows(plan: Plan, found: Check, device: str | None) -> Iterator[tuple[str, str]]:
    from mergekit.report.contents import contents
    from mergekit.report.record import in_units

    yield from contents(plan)
    yield "memory", f"at most {in_units(plan.memory.peak)}"
    for space in found.spaces:
        yield "disk", f"{in_units(space.needed)} of {in_units(space.free)} that are free in {space.folder}"
    yield "device", device or "compiled kernels on the CPU"
    yield "check", "nothing stands in the way"
