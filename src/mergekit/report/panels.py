"""Panels of an explanation as heatmaps, and as a page that any browser shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from statistics import fmean

from mergekit.report.explanation import Explanation, Line, Panel, Values, show_values
from mergekit.report.heatmap import Heatmap

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222; }
table { border-collapse: collapse; font-size: 12px; margin: 0.5em 0 2em; }
td, th { padding: 2px 7px; text-align: right; white-space: nowrap; }
th { font-weight: normal; color: #555; }
thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
dt { clear: left; color: #555; } dd { margin-left: 2em; }
h2 { font-size: 16px; margin-bottom: 0; }
"""
_LIGHT, _DARK = (0xF1, 0xF7, 0xF5), (0x0B, 0x55, 0x63)  # colours of the least and of the greatest value
_WHITE_TEXT = 0.55  # share of the range from which on the background is dark


def height_of(values: Values, all_values: Values) -> float | None:
    """A number that stands for the values of a cell: their mean, or for words their place among all words.

    Parameters:
        values: of the cell.
        all_values: of the panel.
    """
    if not values:
        return None
    return fmean(all_values.index(value) if isinstance(value, str) else float(value) for value in values)


def grouped(panel: Panel) -> Iterator[tuple[str, Line]]:
    """Lines of a panel with their labels, layers of equal values in one line: ``0-3``."""
    for _, group in groupby(panel.lines, key=lambda line: (line.layer is None and line.label, dict(line.cells))):
        lines = list(group)
        first, last = lines[0], lines[-1]
        yield first.label if first is last else f"{first.label}-{last.label}", first


def heatmap_of(panel: Panel) -> Heatmap:
    """A panel with a row for each layer."""
    every = panel.values
    values = [[height_of(line.cells.get(part, ()), every) for part in panel.parts] for line in panel.lines]
    return Heatmap((("", panel.title),), [line.label for line in panel.lines], panel.parts, values, panel.parameter)


def page_of(explanation: Explanation) -> str:
    """A page of HTML that needs nothing beside itself.

    Parameters:
        explanation: of a merge.
    """
    said = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>\n" for label, text in explanation.sentences)
    same = "".join(f"<dt>{escape(panel.title)}</dt><dd>{escape(panel.constant)}</dd>\n" for panel in explanation.flat)
    tables = "".join(map(_table, explanation.varied))
    title = f"mergekit: {escape(explanation.method)}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<dl>\n{said}{same}</dl>\n{tables}</body>\n</html>\n"
    )


def _table(panel: Panel) -> str:
    head = "".join(f"<th>{escape(part)}</th>" for part in panel.parts)
    rows = "".join(
        f"<tr><th>{escape(label)}</th>{''.join(_cells(panel, line))}</tr>\n" for label, line in grouped(panel)
    )
    head = f"<thead><tr><td></td>{head}</tr></thead>\n"
    return f"<h2>{escape(panel.title)}</h2>\n<table>\n{head}<tbody>\n{rows}</tbody>\n</table>\n"


def _cells(panel: Panel, line: Line) -> Iterator[str]:
    every = panel.values
    for part in panel.parts:
        values = line.cells.get(part, ())
        if values:
            share = share_of(values, every)
            text = "#fff" if share > _WHITE_TEXT else "#222"
            style = f"background:{_colour(share)};color:{text}"
            yield f'<td style="{style}">{escape(show_values(values))}</td>'
        else:
            yield "<td></td>"


def share_of(values: Values, all_values: Values) -> float:
    """Where the values of a cell lie between the least and the greatest of a panel, 0 to 1; 0 if all are the same."""
    heights = [height_of((value,), all_values) or 0.0 for value in all_values]
    low, high = min(heights), max(heights)
    own = height_of(values, all_values) or 0.0
    return (own - low) / (high - low) if high > low else 0.0


def _colour(share: float) -> str:
    mixed: Sequence[int] = [round(light + (dark - light) * share) for light, dark in zip(_LIGHT, _DARK, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)
