"""``mergekit sweep``: merge and score a grid of settings of one recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit.cli.judging import JUDGED, in_workers, judged, loading_of, ready_workers
from mergekit.cli.merge import config_file, heed_stop, in_json, on_threads, quietly, read_config, strictly, verbosely
from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Output, usage_failure
from mergekit.cli.tables import table
from mergekit.cli.targets import picture, writable

if TYPE_CHECKING:
    from mergekit.evolution.evaluation import Judged
    from mergekit.evolution.objectives import Objective
    from mergekit.evolution.sweep import Axis, Point

WRITTEN = "What is written"
_DIRECTIONS = 1 / 4  # of the memory, for what is used again for every scale


def _axis(_ctx: click.Context, _param: click.Parameter, texts: Sequence[str]) -> list[Axis]:
    from mergekit.evolution.sweep import Axis

    try:
        return [Axis.parse(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@option(
    JUDGED,
    "--set",
    "axes",
    metavar="PATH=VALUES",
    multiple=True,
    required=True,
    callback=_axis,
    help="A setting of the recipe, by the path that messages have, such as models[0].parameters.weight, with what it "
    "takes: LOW:HIGH:COUNT, or a list with commas. Several make a grid.",
)
@option(
    JUDGED,
    "--objective",
    "objectives",
    metavar="KIND:WHAT",
    multiple=True,
    required=True,
    help="What candidates are scored by: perplexity:FILE, bits_per_byte:FILE, task:NAME or task:NAME:METRIC, "
    "call:MODULE:FUNCTION, command:COMMAND; may be given several times. A - before a call or a command says that "
    "less is better.",
)
@option(
    JUDGED,
    "--bytes",
    "text_bytes",
    metavar="N",
    type=click.IntRange(min=1),
    help="Bytes of each text; all if not given.",
)
@option(
    JUDGED,
    "--window",
    metavar="N",
    type=click.IntRange(min=2),
    default=512,
    help="Tokens of a text that a model sees together; 512 if not given.",
)
@verbosely
@quietly
@in_json
@strictly
@in_workers
@judged
@on_threads
@option(GENERAL, "--random-seed", metavar="N", type=int, default=0, help="Seed of random methods; 0 if not given.")
@option(
    WRITTEN,
    "--csv",
    "table_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=writable,
    help="Write the table as comma-separated values.",
)
@option(
    WRITTEN,
    "--plot",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture,
    help="Draw a curve for one setting, or the score over two: .png, .svg or .pdf. Needs matplotlib: pip install "
    '"mergekit[plot]".',
)
@click.help_option("-h", "--help")
def sweep(config_file: str, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Merge the recipe CONFIG_FILE with every combination of some settings, in memory, and score the results."""
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        try:
            _sweep(config_file, flags, output)
        except click.UsageError as error:
            output.fail(usage_failure(error))


def _sweep(config_file: str, flags: dict[str, Any], output: Output) -> None:
    from mergekit.evolution.candidate import sweep_memory
    from mergekit.evolution.evaluation import RecipeEvaluator
    from mergekit.evolution.harness import Tasks
    from mergekit.evolution.plots import require_matplotlib
    from mergekit.evolution.sweep import sweep as swept

    heed_stop()
    text, name = read_config(config_file)
    axes, plot = flags.pop("axes"), flags.pop("plot")
    objectives = _objectives(flags.pop("objectives"), flags.pop("text_bytes"), flags.pop("window"))
    tasks, kept = Tasks(folders=flags.pop("folders")), _DIRECTIONS if any(axis.scales for axis in axes) else 0.0
    loading = replace(loading_of(flags, flags.pop("strict")), tasks=tasks, directions=kept)
    if plot:
        require_matplotlib()
    points = _planned(text, name, axes, objectives, loading.merge, flags.pop("unleashed"), output)
    sweep_memory()
    found: dict[int, Judged] = {}
    evaluator = RecipeEvaluator(objectives, loading)
    with ready_workers(evaluator, flags.pop("workers"), flags.pop("ray"), output) as workers:
        for index, judged in swept(axes, points, workers):
            found[index] = judged
            if judged.failure:
                output.note([f"{_named(axes, points[index])}: {judged.failure}"])
    _tell(axes, objectives, points, found, output)
    if flags["table_file"]:
        _write_table(axes, objectives, points, found, flags["table_file"])
    if plot:
        _draw(axes, objectives, points, found, plot)


def _objectives(texts: Sequence[str], most: int | None, window: int) -> tuple[Objective, ...]:
    from mergekit.evolution.scoring import objective_from

    try:
        return tuple(objective_from(text, {"bytes": most, "window": window}) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--objective") from None


def _planned(
    text: str,
    name: str,
    axes: Sequence[Axis],
    objectives: Sequence[Objective],
    merge: Any,
    unleashed: bool,
    output: Output,
) -> list[Point]:
    """The grid, each of whose recipes can be merged."""
    from mergekit.api.options import planning
    from mergekit.errors import Findings, Place
    from mergekit.evolution.preparing import check_objectives
    from mergekit.evolution.sweep import grid
    from mergekit.plan import plan_merge

    findings = Findings()
    place = Place("--objective")
    check_objectives(((objective, place) for objective in objectives), merge.allow_code, unleashed, findings)
    findings.raise_errors()
    output.warn(findings.warnings)
    output.warn(plan_merge(text, file=name, options=planning(merge)).findings.warnings)
    points = grid(text, axes, name)
    for point in points:
        plan_merge(point.recipe, file=f"{name} with {_named(axes, point)}", options=planning(merge))
    return points


def _named(axes: Sequence[Axis], point: Point) -> str:
    return ", ".join(f"{axis.path} {value}" for axis, value in zip(axes, point.values, strict=True))


def _rows(objectives: Sequence[Objective], points: Sequence[Point], found: Mapping[int, Judged]) -> list[list[str]]:
    rows = []
    for index, point in enumerate(points):
        judged, settings = found[index], [str(value) for value in point.values]
        if judged.failure:
            rows.append([*settings, *("" for _ in objectives), "failed"])
        else:
            rows.append([*settings, *(f"{value:.6g}" for value in judged.values), f"{judged.score:.6g}"])
    return rows


def _tell(
    axes: Sequence[Axis],
    objectives: Sequence[Objective],
    points: Sequence[Point],
    found: Mapping[int, Judged],
    output: Output,
) -> None:
    from mergekit.evolution.sweep import best_of

    best = best_of(found)
    head = [*(axis.label for axis in axes), *(objective.name for objective in objectives), "score"]
    if not output.as_json and not output.quiet:
        for line in table(head, _rows(objectives, points, found), left=0):
            click.echo(line)
        click.echo()
    names = [objective.name for objective in objectives]
    record = {
        "settings": [axis.path for axis in axes],
        "best": best,
        "points": [
            {
                "settings": dict(zip((axis.path for axis in axes), point.values, strict=True)),
                "objectives": dict(zip(names, found[index].values, strict=False)),
                "score": None if found[index].failure else found[index].score,
                "failure": found[index].failure,
                "seconds": round(found[index].seconds, 3),
            }
            for index, point in enumerate(points)
        ],
    }
    told = "none: all candidates have failed" if best is None else _named(axes, points[best])
    output.finish([("best", told)], record)


def _write_table(
    axes: Sequence[Axis],
    objectives: Sequence[Objective],
    points: Sequence[Point],
    found: Mapping[int, Judged],
    file: Path,
) -> None:
    import csv

    from mergekit.checkpoint.writing import reported

    head = [*(axis.path for axis in axes), *(objective.name for objective in objectives), "score"]
    with reported(file, 0), file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([head, *_rows(objectives, points, found)])


def _draw(
    axes: Sequence[Axis],
    objectives: Sequence[Objective],
    points: Sequence[Point],
    found: Mapping[int, Judged],
    file: Path,
) -> None:
    """A curve for one setting; for two or more the score over the first two, the best of the others."""
    from mergekit.evolution.plots import draw_curve, draw_plane

    if len(axes) == 1:
        values = [
            float(value) if isinstance(value, int | float) else index
            for index, (value,) in enumerate(point.values for point in points)
        ]
        series = {
            objective.name: [
                found[index].values[own] if not found[index].failure else math.nan for index in range(len(points))
            ]
            for own, objective in enumerate(objectives)
        }
        draw_curve(axes[0].path, values, series, file)
        return
    first, second = axes[0], axes[1]
    cells = [[math.nan] * len(first.values) for _ in second.values]
    for index, point in enumerate(points):
        score = found[index].score
        row, column = second.values.index(point.values[1]), first.values.index(point.values[0])
        if not found[index].failure and not score <= cells[row][column]:
            cells[row][column] = score
    ticks = ([str(value) for value in first.values], [str(value) for value in second.values])
    draw_plane((first.path, second.path), ticks, cells, file)
