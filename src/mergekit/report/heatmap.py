"""Heatmaps as pictures: layers from top to bottom, parts from left to right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mergekit.checkpoint.writing import reported
from mergekit.errors import UnsupportedError
from mergekit.report.grid import MEASURES, Grid

_CELL = 0.28, 0.62  # inches, height and width
_MARGIN = 1.6, 2.6  # inches around all cells
_MOST = 60.0  # inches; matplotlib refuses 65,536 pixels
_DPI = 150
_LETTERS = 9  # of the title in an inch

PICTURES = (".png", ".svg", ".pdf")
"""Suffixes of the files that can be drawn."""


@dataclass(frozen=True, slots=True)
class Heatmap:
    """One map.

    Parameters:
        title: lines above it: words, and a name that is cut at its beginning if it is long.
        rows: labels from top to bottom.
        columns: labels from left to right.
        values: for each row and column; None where there is nothing.
        scale: label of the colours.
    """

    title: tuple[tuple[str, str], ...]
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    scale: str

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        height, width = (
            min(_MOST, each * count + margin)
            for each, count, margin in zip(_CELL, (len(self.rows), len(self.columns)), _MARGIN, strict=True)
        )
        return width, height


def require_matplotlib() -> None:
    """Say so if there is no matplotlib.

    Raises:
        UnsupportedError: it is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UnsupportedError("a heatmap needs matplotlib", hint="pip install 'mergekit[plot]'")


def _short(name: str, width: float) -> str:
    """The end of a name, as much of it as fits so many inches."""
    most = int(width * _LETTERS)
    return name if len(name) <= most else "…" + name[1 - most :]


def draw_heatmap(grid: Grid, measure: str, names: tuple[str, str], file: Path) -> None:
    """Write a heatmap of how far two models are from each other.

    Parameters:
        grid: what is shown.
        measure: one of :data:`mergekit.report.grid.MEASURES`.
        names: of the two models, for the title.
        file: PNG, SVG or PDF, by its suffix.

    Raises:
        UnsupportedError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    values = [
        [MEASURES[measure](row.cells[part]) if part in row.cells else None for part in grid.parts] for row in grid.rows
    ]
    scale = {"changed": "share of changed entries", "cosine": "cosine"}.get(measure, f"{measure} distance")
    title = (("", names[1]), ("against ", names[0]))
    draw_heatmaps([Heatmap(title, [row.label for row in grid.rows], grid.parts, values, scale)], file)


def draw_heatmaps(maps: Sequence[Heatmap], file: Path) -> None:
    """Write heatmaps, one below the other.

    Parameters:
        maps: what is shown, at least one.
        file: PNG, SVG or PDF, by its suffix.

    Raises:
        UnsupportedError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widths, heights = zip(*(each.size for each in maps), strict=True)
    figure = Figure(figsize=(max(widths), min(_MOST, sum(heights))), layout="constrained")
    FigureCanvasAgg(figure)
    scale = max(1, math.ceil(sum(heights) / _MOST))
    for each, axes in zip(maps, _axes(figure, heights), strict=True):
        _draw(each, figure, axes, every=scale)
    with reported(file, 0):
        figure.savefig(file, dpi=_DPI)


def _axes(figure: Any, heights: Sequence[float]) -> Sequence[Any]:
    """Axes below each other, of these proportions."""
    axes: Sequence[Any] = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    return axes


def _draw(each: Heatmap, figure: Any, axes: Any, every: int) -> None:
    """Draw a map; where it is crowded, only every so many rows are labelled."""
    values = np.array([[np.nan if value is None else value for value in row] for row in each.values])
    axes.set_facecolor("0.9")  # where a layer has no such part
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(each.columns)), list(each.columns), rotation=45, ha="right")
    step = every * -(-len(each.rows) // int(_MOST / _CELL[0]))
    axes.set_yticks(range(0, len(each.rows), step), list(each.rows[::step]))
    lines = [f"{words}{_short(name, each.size[0])}" for words, name in each.title]
    axes.set_title("\n".join(lines), fontsize=9, parse_math=False)
    figure.colorbar(image, ax=axes, label=each.scale)
