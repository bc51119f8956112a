"""A grid over settings of a recipe."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from mergekit.config import rendered
from mergekit.errors import Problem, RecipeError
from mergekit.evolution.evaluation import Job, Judged
from mergekit.evolution.workers import Workers
from mergekit.recipe import Scalar

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting of a recipe with the values that it takes.

    Parameters:
        path: where it stands, as messages write it: ``models[0].parameters.weight``.
        values: what it takes.
    """

    path: str
    values: tuple[Scalar, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Read ``PATH=LOW:HIGH:COUNT`` or ``PATH=VALUE,VALUE``.

        Raises:
            ValueError: it is neither.

        Example:
            >>> Axis.parse("parameters.lambda=0.2:1.4:4").values
            (0.2, 0.6, 1.0, 1.4)
            >>> Axis.parse("merge_method=ties,dare_ties").values
            ('ties', 'dare_ties')
        """
        path, equals, written = text.partition("=")
        path, written = path.strip(), written.strip()
        if not equals or not path or not written or _STEP.sub("", path).strip("."):
            raise ValueError(f"`{text}` is not `PATH=LOW:HIGH:COUNT` or `PATH=VALUE,VALUE`")
        span = re.fullmatch(r"([^:,]+):([^:,]+):([^:,]+)", written)
        return cls(path, _spread(text, *span.groups()) if span else tuple(map(_scalar, written.split(","))))

    @property
    def scales(self) -> bool:
        """Whether it is the scale of what is added to the base."""
        return self.label == "lambda"

    @property
    def label(self) -> str:
        """Its last word."""
        return self.path.rpartition(".")[2]


def _spread(text: str, low: str, high: str, count: str) -> tuple[Scalar, ...]:
    try:
        first, last, number = float(low), float(high), int(count)
    except ValueError:
        raise ValueError(f"`{text}` is no range: two numbers and a whole number, `LOW:HIGH:COUNT`") from None
    if number < 2 or not (math.isfinite(first) and math.isfinite(last)):
        raise ValueError(f"`{text}` has fewer than two values")
    return tuple(round(first + (last - first) * index / (number - 1), 12) for index in range(number))


def _scalar(text: str) -> Scalar:
    value = yaml.safe_load(text)
    return value if isinstance(value, bool | int | float | str) else text.strip()


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the grid.

    Parameters:
        values: one for each axis.
        recipe: the recipe with these values.
    """

    values: tuple[Scalar, ...]
    recipe: str


def grid(text: str, axes: Sequence[Axis], file: str | None = None) -> list[Point]:
    r"""All recipes of a grid; the last axis changes fastest.

    Parameters:
        text: the recipe, one YAML document that can be read.
        axes: what is set.
        file: its name, for messages.

    Raises:
        RecipeError: the recipe has no such place.

    Example:
        >>> recipe = "merge_method: linear\nmodels: [{model: a}, {model: b}]"
        >>> [point.values for point in grid(recipe, [Axis("models[0].parameters.weight", (0.1, 0.9))])]
        [(0.1,), (0.9,)]
    """
    content = yaml.safe_load(text)
    points = []
    for values in product(*(axis.values for axis in axes)):
        own = copy.deepcopy(content)
        for axis, value in zip(axes, values, strict=True):
            _put(own, axis.path, value, file)
        points.append(Point(values, rendered(own)))
    return points


def _put(content: Any, path: str, value: Scalar, file: str | None) -> None:
    """Set a value; `parameters:` that are not written are added, and so is what stands in them."""
    steps = [word or int(number) for word, number in _STEP.findall(path)]
    place = content
    for index, step in enumerate(steps[:-1]):
        if step == "parameters" and isinstance(place, dict):
            place[step] = place.get(step) or {}
        try:
            place = place[step]
        except (KeyError, IndexError, TypeError):
            raise _no_place(path, steps[: index + 1], place, file) from None
    last = steps[-1]
    try:
        place[last] = value
    except (IndexError, TypeError):
        raise _no_place(path, steps, place, file) from None


def _no_place(path: str, steps: Sequence[str | int], place: Any, file: str | None) -> RecipeError:
    known = f"one of {', '.join(map(str, place))}" if isinstance(place, dict) else None
    known = f"[0] to [{len(place) - 1}]" if isinstance(place, list) else known
    what = f"`--set {path}`: the recipe has no `{steps[-1]}` there"
    return RecipeError([Problem(what, file, known)])


def sweep(axes: Sequence[Axis], points: Sequence[Point], workers: Workers) -> Iterator[tuple[int, Judged]]:
    """Judge every point of a grid; pairs of index and result come as they are done.

    Points that differ in a scale alone follow each other, as their merges have most in common.

    Parameters:
        axes: of the grid.
        points: of the grid; those with one recipe are judged once.
        workers: where they are judged.
    """

    def others(index: int) -> list[int]:
        own = zip(axes, points[index].values, strict=True)
        return [axis.values.index(value) for axis, value in own if not axis.scales]

    indices: dict[str, list[int]] = {}
    for index in sorted(range(len(points)), key=others):
        indices.setdefault(points[index].recipe, []).append(index)
    for job, judged in workers.judge(Job(recipe) for recipe in indices):
        for index in indices[job.recipe]:
            yield index, judged


def best_of(judged: Mapping[int, Judged]) -> int | None:
    """Index of the point with the greatest score, the first of several; None if all have failed."""
    counting = {index: each.score for index, each in judged.items() if each.failure is None}
    return max(sorted(counting), key=lambda index: counting[index]) if counting else None
