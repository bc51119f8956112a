"""``mergekit explain``: which values the parameters of a recipe have, and what they refer to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit.cli.merge import config_file, in_json, job_of, job_options, of_merges, read_config
from mergekit.cli.options import Command, ignored_flags, option
from mergekit.cli.output import Output, print_json
from mergekit.cli.tables import paragraph, table
from mergekit.cli.targets import picture, writable

if TYPE_CHECKING:
    from mergekit.report.explanation import Explanation, Line, Panel

PICTURES = "Pictures"
_BARS = "▁▂▃▄▅▆▇█"  # from the least to the greatest value
_COLOURS = (24, 31, 38, 44, 114, 184, 214, 220)  # of the bars, in a terminal of 256 colours
_WIDEST = 18  # of a column's name; longer ones are explained below the table


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@in_json
@option(
    PICTURES,
    "--png",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture,
    help="Draw the values: .png, .svg or .pdf. Needs matplotlib: pip install 'mergekit[plot]'.",
)
@option(
    PICTURES,
    "--html",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=writable,
    help="Write the values as a page for a browser.",
)
@of_merges
@click.help_option("-h", "--help")
def explain(config_file: str, as_json: bool, png: Path | None, html: Path | None, **flags: Any) -> None:
    """Say what a recipe means: the base, which model a number refers to, and the value of every parameter.

    CONFIG_FILE is a recipe, or - for standard input. Values are those that the merge would compute with, for every
    layer and part, after gradients, filters, slices and defaults; bars show where they lie between the least and the
    greatest.
    """
    output = Output(as_json)
    with output.failures():
        output.note(ignored_flags())
        _explain(config_file, png, html, flags, output)


def _explain(config_file: str, png: Path | None, html: Path | None, flags: dict[str, Any], output: Output) -> None:
    from mergekit.checkpoint.writing import reported
    from mergekit.plan import plan_merge
    from mergekit.report.explanation import explain as explain_plan
    from mergekit.report.heatmap import draw_heatmaps, require_matplotlib
    from mergekit.report.panels import heatmap_of, page_of

    if png is not None:
        require_matplotlib()
    text, name = read_config(config_file)
    job = job_of(text, name, None, job_options(flags))
    plan = plan_merge(text, file=name, options=replace(job.planning, preview=True))
    output.warn(plan.findings.warnings)
    output.note(plan.findings.notices)
    found = explain_plan(plan)
    if png is not None and found.panels:
        draw_heatmaps([heatmap_of(panel) for panel in found.varied or found.flat], png)
    if html is not None:
        page = page_of(found)
        with reported(html, len(page.encode())):
            html.write_text(page, encoding="utf-8")
    if output.as_json:
        print_json({"ok": True, "explanation": record(found)})
    else:
        click.echo("\n".join(map(_coloured, described(found))))


def record(found: Explanation) -> dict[str, object]:
    """An explanation for programs.

    Parameters:
        found: the explanation.
    """
    return {
        "method": found.method,
        "sentences": [{"label": label, "text": text} for label, text in found.sentences],
        "panels": [
            {
                "parameter": panel.parameter,
                "model": panel.model,
                "module": panel.module,
                "default": panel.default,
                "parts": list(panel.parts),
                "rows": [
                    {
                        "label": line.label,
                        "layer": line.layer,
                        "values": {part: list(values) for part, values in line.cells.items()},
                    }
                    for line in panel.lines
                ],
            }
            for panel in found.panels
        ],
    }


def described(found: Explanation) -> Iterator[str]:
    """An explanation in lines of 80 columns.

    Parameters:
        found: the explanation.
    """
    from mergekit.report.explanation import show_values

    indent = max(len(label) for label, _ in found.sentences) + 2
    for label, text in found.sentences:
        yield from paragraph(label, text, min(indent, 24))
    if found.flat:
        yield ""
    for panel in found.flat:
        yield f"{panel.title}: {panel.constant}"
    for panel in found.varied:
        yield ""
        yield f"{panel.title}: {show_values(panel.values)}"
        yield from _matrix(panel)


def _matrix(panel: Panel) -> Iterator[str]:
    """A table of layers and parts; columns of equal values are one, and so are such layers."""
    from mergekit.report.panels import grouped

    lines = list(grouped(panel))
    columns: dict[tuple[object, ...], list[str]] = {}
    layered = [line for _, line in lines if line.layer is not None]
    for part in panel.parts:
        if any(part in line.cells for line in layered):
            columns.setdefault(tuple(line.cells.get(part) for line in layered), []).append(part)
    names = [_column(parts, panel, number) for number, parts in enumerate(columns.values())]
    if columns:
        firsts = [parts[0] for parts in columns.values()]
        rows = [
            [label, *(_cell(panel, line, part) for part in firsts)] for label, line in lines if line.layer is not None
        ]
        yield from table(["layers", *(name for name, _ in names)], rows)
    for name, legend in names:
        if legend:
            yield from paragraph(f"{name} is", legend, max(8, len(name) + 4))
    for label, line in lines:
        if line.layer is None:
            told = [f"{part} {_cell(panel, line, part)}" for part in line.cells]
            yield from paragraph(label, ", ".join(told), 8)


def _column(parts: list[str], panel: Panel, number: int) -> tuple[str, str]:
    """The name of a column, and what it stands for where the name does not say it."""
    layered = [
        part for part in panel.parts if any(part in line.cells for line in panel.lines if line.layer is not None)
    ]
    if parts == layered:
        return "all parts", ""
    said: list[str] = []
    for part in parts:
        stem = part.partition(".")[0]
        whole = [other for other in layered if other.partition(".")[0] == stem]
        said.append(f"{stem}.*" if len(whole) > 1 and set(whole) <= set(parts) else part)
    listed = ", ".join(dict.fromkeys(said))
    return (listed, "") if len(listed) <= _WIDEST else (f"({chr(ord('a') + number % 26)})", listed)


def _cell(panel: Panel, line: Line, part: str) -> str:
    from mergekit.report.explanation import show_values
    from mergekit.report.panels import share_of

    values = line.cells.get(part, ())
    if not values:
        return ""
    return f"{show_values(values)} {_BARS[round(share_of(values, panel.values) * (len(_BARS) - 1))]}"


def _coloured(line: str) -> str:
    """A line whose bars have colours; those are left out where stdout is no terminal."""
    return "".join(
        click.style(letter, fg=_COLOURS[_BARS.index(letter)]) if letter in _BARS else letter for letter in line
    )
