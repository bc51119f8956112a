"""``mergekit diff``: how far two models are from each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Output, print_json
from mergekit.cli.tables import paragraph, table
from mergekit.cli.targets import picture, writable

if TYPE_CHECKING:
    from mergekit.report.difference import Difference, Distance, TensorDifference
    from mergekit.report.grid import Grid, Row

SHOWN = "What is shown"
_MEASURES = ("relative", "symmetric", "cosine", "changed")
_MOST = 6  # names in a list


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("first")
@click.argument("second")
@option(
    SHOWN,
    "--measure",
    type=click.Choice(_MEASURES),
    default="relative",
    help="What the table, the plot and --top go by; the relative distance if not given.",
)
@option(SHOWN, "--top", metavar="N", type=click.IntRange(min=1), help="List the N tensors that changed most.")
@option(SHOWN, "--tensors", is_flag=True, help="List every tensor.")
@option(
    SHOWN,
    "--plot",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    callback=picture,
    help="Write a heatmap of the table: .png, .svg or .pdf. Needs matplotlib: pip install 'mergekit[plot]'.",
)
@option(
    GENERAL,
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    callback=writable,
    help="Write one JSON object into FILE, or with - on stdout, and nothing else.",
)
@option(
    GENERAL,
    "-j",
    "--num-threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads; one per core if not given. The result does not depend on it.",
)
@option(GENERAL, "--quiet/--no-quiet", help="Draw no progress bar.")
@click.help_option("-h", "--help")
def diff(
    first: str,
    second: str,
    measure: str,
    top: int | None,
    tensors: bool,
    plot: str | None,
    json_file: str | None,
    num_threads: int | None,
    quiet: bool,
) -> None:
    """Say how far the model SECOND is from the model FIRST, by layer and part.

    With the entries a of FIRST and b of SECOND, over a tensor or all tensors of a cell, and the Euclidean norm |x|:

    \b
    relative   |b - a| / |a|
    symmetric  2 |b - a| / (|a| + |b|), from 0 to 2, the same for FIRST and SECOND exchanged
    cosine     a . b / (|a| |b|)
    changed    share of the entries that are not equal

    Tensors that only one model has, or that have other shapes, are listed. Weights are read in stripes, on all cores.
    """  # noqa: D301  (click keeps the lines of a paragraph that begins with a backspace)
    output = Output(json_file == "-", quiet)
    with output.failures():
        _diff((first, second), measure, top, tensors, plot, json_file, num_threads, output)


def _diff(
    names: tuple[str, str],
    measure: str,
    top: int | None,
    tensors: bool,
    plot: str | None,
    json_file: str | None,
    threads: int | None,
    output: Output,
) -> None:
    from mergekit.checkpoint.hub import Hub
    from mergekit.cli.progress import Narrator
    from mergekit.report.difference import compare_models
    from mergekit.report.grid import grid_of, most_changed
    from mergekit.report.heatmap import draw_heatmap, require_matplotlib

    if plot is not None:
        require_matplotlib()
    with Narrator(output) as narrator:
        found = compare_models(
            *names,
            workers=threads,
            hub=Hub(bars=output.drawing),
            planned=lambda nbytes, warnings: narrator.begin("comparing", nbytes, warnings),
            advance=narrator.advance,
        )
    grid = grid_of(found)
    listed = list(found.tensors) if tensors else most_changed(found, measure, top) if top else []
    if plot is not None:
        draw_heatmap(grid, measure, (found.first, found.second), Path(plot))
    if json_file is None:
        click.echo("\n".join(described(found, grid, measure, listed)))
    else:
        _write_json(record(found, grid, listed), json_file)


def _write_json(found: Mapping[str, object], file: str) -> None:
    from mergekit.checkpoint.writing import reported

    if file == "-":
        print_json({"ok": True, **found})
    else:
        text = json.dumps({"ok": True, **found}, allow_nan=False, indent=1) + "\n"
        with reported(Path(file), len(text)):
            Path(file).write_text(text, encoding="utf-8")


def record(found: Difference, grid: Grid, listed: Sequence[TensorDifference]) -> dict[str, Any]:
    """A difference for programs.

    Parameters:
        found: the difference.
        grid: the same by layer and part.
        listed: the tensors that are listed.
    """
    return {
        "first": found.first,
        "second": found.second,
        "all": _numbers(grid.all),
        "parts": {part: _numbers(distance) for part, distance in grid.totals.items()},
        "rows": [_row_record(row) for row in grid.rows],
        "tensors": [_tensor_record(tensor) for tensor in listed],
        "only_first": list(found.only_first),
        "only_second": list(found.only_second),
        "unlike": dict(found.unlike),
    }


def _numbers(distance: Distance) -> dict[str, float | int | None]:
    return {
        "entries": distance.entries,
        "relative": distance.relative,
        "symmetric": distance.symmetric,
        "cosine": distance.cosine,
        "changed": distance.share,
        "broken": distance.broken,
    }


def _row_record(row: Row) -> dict[str, Any]:
    parts = {part: _numbers(distance) for part, distance in row.cells.items()}
    return {"label": row.label, "module": row.module, "layer": row.layer, "all": _numbers(row.all), "parts": parts}


def _tensor_record(tensor: TensorDifference) -> dict[str, Any]:
    own = {
        "name": tensor.name,
        "other": tensor.other,
        "module": tensor.place.module,
        "layer": tensor.place.layer,
        "part": tensor.part,
        "shape": list(tensor.shape),
        "dtypes": list(tensor.dtypes),
    }
    return own | _numbers(tensor.distance)


def described(found: Difference, grid: Grid, measure: str, listed: Sequence[TensorDifference]) -> Iterator[str]:
    """A difference in lines of 80 columns."""
    from mergekit.report.grid import MEASURES

    show = MEASURES[measure]

    def cell(distance: Distance | None) -> str:
        return "" if distance is None else number(show(distance))

    rows = [[row.label, *(cell(row.cells.get(part)) for part in grid.parts), cell(row.all)] for row in grid.rows]
    totals = ["all", *(cell(grid.totals[part]) for part in grid.parts), cell(grid.all)]
    yield from table(["layer", *grid.parts, "all"], [*rows, totals])
    yield ""
    yield from _summary(found, grid)
    if listed:
        yield ""
        head = ["relative", "cosine", "changed", "tensor"]
        yield from table(head, [_line(tensor) for tensor in listed], left=0, last=True)


def _line(tensor: TensorDifference) -> list[str]:
    distance = tensor.distance
    return [number(distance.relative), number(distance.cosine), percent(distance.share), tensor.name]


def number(value: float | None) -> str:
    """A number of three digits, more if it is close to 1; 0 and 1 only if it is just that.

    Example:
        >>> number(0.01), number(0.999912), number(1.0), number(None)
        ('0.0100', '0.99991', '1', '-')
    """
    if value is None or value in (0, 1, -1):
        return "-" if value is None else f"{value:g}"
    return f"{value:.5f}" if 0.99 < abs(value) < 1 else f"{value:#.3g}"


def percent(share: float) -> str:
    """A share as people read it.

    Example:
        >>> percent(0.98765)
        '98.8%'
    """
    return f"{100 * share:.1f}%"


def _summary(found: Difference, grid: Grid) -> Iterator[str]:
    every = grid.all
    rows = [
        ("compared", f"{len(found.tensors):,} tensors with {every.entries:,} parameters"),
        ("relative", f"{number(every.relative)}, {number(every.symmetric)} if symmetric"),
        ("cosine", number(every.cosine)),
        ("changed", f"{percent(every.share)} of all entries"),
    ]
    if every.broken:
        rows.append(("left out", f"{every.broken:,} entries that are infinite or not a number"))
    if mixed := sorted({" and ".join(tensor.dtypes) for tensor in found.tensors if len(set(tensor.dtypes)) > 1}):
        rows.append(("dtypes", f"differ: {', '.join(mixed)}"))
    if unlike := [f"{name} ({why})" for name, why in found.unlike.items()]:
        rows.append(("not compared", _listed(unlike)))
    for model, names in ((found.first, found.only_first), (found.second, found.only_second)):
        if names:
            rows.append(("only one has", f"{model}: {_listed(names)}"))
    for label, text in rows:
        yield from paragraph(label, text)


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + rest
