"""A picture of how far two models are from each other: layers by parts."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mergekit.checkpoint.writing import reported
from mergekit.errors import UnsupportedError
from mergekit.report.grid import MEASURES, Grid

_CELL = 0.28, 0.62  # inches, height and width
_MARGIN = 1.6, 2.6  # inches around all cells
_MOST = 60.0  # inches; matplotlib refuses 65,536 pixels
_DPI = 150
_LETTERS = 9  # of the title in an inch


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
    """Write a heatmap: parts from left to right, layers from top to bottom.

    Parameters:
        grid: what is shown.
        measure: one of :data:`mergekit.report.grid.MEASURES`.
        names: of the two models, for the title.
        file: PNG, SVG or PDF, by its suffix.

    Raises:
        UnsupportedError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = [
        [MEASURES[measure](row.cells[part]) if part in row.cells else None for part in grid.parts] for row in grid.rows
    ]
    values = np.array([[np.nan if value is None else value for value in row] for row in cells])
    height, width = (
        min(_MOST, each * count + margin)
        for each, count, margin in zip(_CELL, (len(grid.rows), len(grid.parts)), _MARGIN, strict=True)
    )
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("0.9")  # where a layer has no such part
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(grid.parts)), list(grid.parts), rotation=45, ha="right")
    step = -(-len(grid.rows) // int(_MOST / _CELL[0]))
    axes.set_yticks(range(0, len(grid.rows), step), [row.label for row in grid.rows[::step]])
    first, second = (_short(name, width) for name in names)
    axes.set_title(f"{second}\nagainst {first}", fontsize=9, parse_math=False)
    figure.colorbar(
        image,
        ax=axes,
        label={"changed": "share of changed entries", "cosine": "cosine"}.get(measure, f"{measure} distance"),
    )
    with reported(file, 0):
        figure.savefig(file, dpi=_DPI)
