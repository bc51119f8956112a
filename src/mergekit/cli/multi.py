"""``mergekit multi`` and ``mergekit-multi``: carry out several merges that build on each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit.cli.generated import merging, telling
from mergekit.cli.merge import config_file, heed_stop, job_options, read_config
from mergekit.cli.options import GENERAL, Command, ignored_flags, option
from mergekit.cli.output import Output

if TYPE_CHECKING:
    from mergekit.multi import Arrangement, Done, MultiOptions, Step

_FOLDER = click.Path(file_okay=False, path_type=Path)
_SAID = {"up to date": "up to date in {}", "written": "to be written to {}", "on the way": "merged while `{}` is made"}


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@telling
@option(
    GENERAL,
    "--out-path",
    "out",
    metavar="FOLDER",
    type=_FOLDER,
    help="Where the merge without a name is written, or the one that --only names.",
)
@option(
    GENERAL,
    "-I",
    "--intermediate-dir",
    "intermediate",
    metavar="FOLDER",
    type=_FOLDER,
    help="Where merges with a name are written, each in a folder of its name; OUT-PATH.stages if not given.",
)
@option(GENERAL, "--only", metavar="NAME", multiple=True, help="Make this merge, and what it needs; may be repeated.")
@option(
    GENERAL,
    "--lazy/--no-lazy",
    default=True,
    help="Leave alone what is up to date: made of the same recipe, options and models (which is the default).",
)
@option(
    GENERAL,
    "--keep/--no-keep",
    default=None,
    help="Write every merge, or remove at the end what was written for other merges alone. Without either flag, "
    "merges that one other needs are made on the way where that is possible, and others are written and stay.",
)
@merging
def multi(config_file: str, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Carry out the merges in CONFIG_FILE, which may take the results of others in place of models.

    CONFIG_FILE is a YAML file, or - for standard input, with a recipe in each document; lines of --- stand between
    documents. Recipes have a name by which others refer to them, and at most one has none.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        output.note(ignored_flags())
        _carry_out(config_file, flags, output)


def _carry_out(config_file: str, flags: dict[str, Any], output: Output) -> None:
    from mergekit.multi import MultiOptions, arranged, read_pipeline

    heed_stop()
    text, name = read_config(config_file)
    own = {key: flags.pop(key) for key in ("out", "intermediate", "only", "lazy", "keep")}
    only_plan = flags.pop("only_plan")
    options = MultiOptions(**own, job=job_options(flags, output.drawing))
    if only_plan:
        with arranged(read_pipeline(text, file=name), options) as arrangement:
            _show(arrangement, output)
    else:
        _run(text, name, options, output)


def _run(text: str, name: str, options: MultiOptions, output: Output) -> None:
    from mergekit.cli.progress import Narrator
    from mergekit.multi import run_pipeline

    def told(step: Step, job: Any) -> Any:
        output.note([f"merging {step.stage.title} into {click.format_filename(step.folder)}"])
        with Narrator(output) as narrator:
            return job(narrator)

    done = run_pipeline(text, file=name, options=options, telling=told)
    steps = [each.step for each in done]
    rows = [(_label(each.step), _outcome(each, steps)) for each in done]
    output.finish(rows, {"stages": [_record(each.step, steps) | _result(each) for each in done]})


def _show(arrangement: Arrangement, output: Output) -> None:
    steps = arrangement.steps
    plans = [step.plan for step in steps if step.plan is not None]
    for plan in plans:
        output.warn(plan.findings.warnings)
        output.note(plan.findings.notices if output.verbose else ())
    rows = [(_label(step), "; ".join(_said(step, steps))) for step in steps]
    output.finish(rows, {"stages": [_record(step, steps) for step in steps]})


def _label(step: Step) -> str:
    return step.stage.key or "(no name)"


def _user(step: Step, steps: Sequence[Step]) -> str:
    """The stage that makes another one on the way."""
    users = (other for other in steps if step.stage.key in other.stage.needs and other.plan is not None)
    return next(_label(other) for other in users)


def _state(step: Step, steps: Sequence[Step]) -> str:
    place = _user(step, steps) if step.state == "on the way" else click.format_filename(step.folder)
    return _SAID[step.state].format(place)


def _said(step: Step, steps: Sequence[Step]) -> Iterator[str]:
    """One line of the graph."""
    from mergekit.report.record import in_units

    made = f"{step.plan.method.name} of " if step.plan else "of "
    yield made + ", ".join(str(ref) for ref in step.stage.recipe.references())
    yield _state(step, steps)
    if step.reason:
        yield f"because {step.reason}"
    if step.plan:
        yield f"reads {in_units(step.plan.read_bytes)}, makes {in_units(step.plan.write_bytes)}"


def _outcome(done: Done, steps: Sequence[Step]) -> str:
    from mergekit.report.record import headline

    if done.report is None:
        return _state(done.step, steps)
    told = dict(headline(done.report))
    where = "removed again" if done.removed else f"written to {click.format_filename(done.step.folder)}"
    return f"{where}: read {told['read']}, written {told['written']}, {told['time']}"


def _record(step: Step, steps: Sequence[Step]) -> dict[str, object]:
    streamed = step.state == "on the way"
    return {
        "name": step.stage.key or None,
        "state": step.state,
        "needs": list(step.stage.needs),
        "models": [str(ref) for ref in step.stage.recipe.references()],
        "method": step.stage.recipe.method,
        "folder": None if streamed else str(step.folder),
        "into": _user(step, steps) if streamed else None,
        "reason": step.reason,
        "bytes_read": step.plan.read_bytes if step.plan else 0,
        "bytes_made": step.plan.write_bytes if step.plan else 0,
    }


def _result(done: Done) -> dict[str, object]:
    from mergekit.cli.merge import essentials

    return {"removed": done.removed, "report": essentials(done.report) if done.report else None}
