"""Pictures of a search and of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from mergekit.checkpoint.writing import reported
from mergekit.errors import UnsupportedError
from mergekit.evolution.search import Found

SUFFIXES = (".png", ".svg", ".pdf")
_DPI = 150


def require_matplotlib() -> None:
    """Say so if there is no matplotlib.

    Raises:
        UnsupportedError: it is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UnsupportedError("plots need matplotlib", hint='`pip install "mergekit[plot]"`')


def draw_search(found: Found, storage: Path, suffix: str) -> list[Path]:
    """Draw how the score went, which genes matter, and the front of two objectives.

    Parameters:
        found: what a search has found.
        storage: its folder.
        suffix: of the files: one of :data:`SUFFIXES`.

    Returns:
        The files.

    Raises:
        UnsupportedError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    files = [_draw_progress(found, storage / f"progress{suffix}")]
    if found.importance:
        files.append(_draw_importance(found.importance, storage / f"importance{suffix}"))
    if len(found.front) > 1:
        files.append(_draw_front(found, storage / f"front{suffix}"))
    return files


def _axes(height: float = 4.0) -> tuple[Any, Any]:
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _saved(figure: Any, file: Path) -> Path:
    with reported(file, 0):
        figure.savefig(file, dpi=_DPI)
    return file


def _draw_progress(found: Found, file: Path) -> Path:
    figure, axes = _axes()
    counting = [entry for entry in found.entries if entry.counts]
    numbers, scores = [entry.number for entry in counting], [entry.judged.score for entry in counting]
    axes.plot(numbers, scores, "o", markersize=3, color="0.6", label="candidates")
    axes.plot(numbers, list(accumulate(scores, max)), drawstyle="steps-post", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("score")
    axes.legend()
    return _saved(figure, file)


def _draw_importance(importance: Mapping[str, float], file: Path) -> Path:
    rows = sorted(importance.items(), key=lambda row: row[1])[-40:]
    figure, axes = _axes(1.2 + 0.25 * len(rows))
    axes.barh([name for name, _ in rows], [share for _, share in rows])
    axes.set_xlabel("importance for the score")
    return _saved(figure, file)


def _draw_front(found: Found, file: Path) -> Path:
    figure, axes = _axes()
    counting = [entry for entry in found.entries if entry.counts]
    for label, entries in (
        ("candidates", [entry for entry in counting if entry.number not in found.front]),
        ("front", [entry for entry in counting if entry.number in found.front]),
    ):
        points = [entry.judged.values[:2] for entry in entries]
        axes.plot([point[0] for point in points], [point[1] for point in points], "o", markersize=4, label=label)
    axes.set_xlabel(found.objectives[0].name)
    axes.set_ylabel(found.objectives[1].name)
    axes.legend()
    return _saved(figure, file)


def draw_curve(name: str, points: Sequence[float], series: Mapping[str, Sequence[float]], file: Path) -> None:
    """Draw what was measured over one setting.

    Parameters:
        name: of the setting.
        points: its values.
        series: values by objective; NaN where a candidate failed.
        file: PNG, SVG or PDF, by its suffix.

    Raises:
        UnsupportedError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure, axes = _axes()
    for label, values in series.items():
        axes.plot(points, values, "o-", markersize=4, label=label)
    axes.set_xlabel(name)
    axes.legend()
    _saved(figure, file)


def draw_plane(
    names: tuple[str, str], axes_values: tuple[Sequence[str], Sequence[str]], cells: Any, file: Path
) -> None:
    """Draw a score over two settings.

    Parameters:
        names: of the settings: from left to right, and from bottom to top.
        axes_values: their values.
        cells: scores, a row for each value of the second setting; NaN where a candidate failed.
        file: PNG, SVG or PDF, by its suffix.

    Raises:
        UnsupportedError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure, axes = _axes()
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(axes_values[0])), list(axes_values[0]))
    axes.set_yticks(range(len(axes_values[1])), list(axes_values[1]))
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    figure.colorbar(image, ax=axes, label="score")
    _saved(figure, file)
