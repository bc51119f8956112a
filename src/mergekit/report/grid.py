"""A difference of two models as a grid: layers by parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mergekit.report.difference import Difference, Distance, TensorDifference
from mergekit.report.parts import PARTS

Measure: TypeAlias = Callable[[Distance], "float | None"]

MEASURES: Mapping[str, Measure] = {
    "relative": lambda distance: distance.relative,
    "symmetric": lambda distance: distance.symmetric,
    "cosine": lambda distance: distance.cosine,
    "changed": lambda distance: distance.share,
}
"""What can be shown of a distance, by the name that users choose it by."""

_SIDES = ("pre", "layer", "post")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the grid.

    Parameters:
        label: for people: ``3``, ``before``, ``vision_tower 3``.
        module: name of the module.
        layer: number of the layer, or None for what stands before or after all layers.
        cells: distance by part, where there are tensors.
        all: over the whole line.
    """

    label: str
    module: str
    layer: int | None
    cells: Mapping[str, Distance]
    all: Distance


@dataclass(frozen=True, slots=True)
class Grid:
    """Layers by parts, with totals.

    Parameters:
        parts: the parts that occur, in the order of tables.
        rows: one for each layer, and for what stands before and after.
        totals: distance by part over the whole model.
        all: over everything.
    """

    parts: tuple[str, ...]
    rows: tuple[Row, ...]
    totals: Mapping[str, Distance]
    all: Distance


def grid_of(difference: Difference) -> Grid:
    """Add distances up, by layer and by part.

    Parameters:
        difference: of two models.
    """
    modules = list(dict.fromkeys(tensor.place.module for tensor in difference.tensors))
    groups: dict[tuple[int, int, int], list[TensorDifference]] = {}
    for tensor in difference.tensors:
        place = tensor.place
        key = (modules.index(place.module), _SIDES.index(place.side), place.layer or 0)
        groups.setdefault(key, []).append(tensor)
    return Grid(
        parts=tuple(part for part in PARTS if any(tensor.part == part for tensor in difference.tensors)),
        rows=tuple(_row(groups[key], len(modules) > 1) for key in sorted(groups)),
        totals=_by_part(difference.tensors),
        all=Distance.total(tensor.distance for tensor in difference.tensors),
    )


def _row(tensors: list[TensorDifference], several: bool) -> Row:
    place = tensors[0].place
    what = {"pre": "before", "post": "after"}.get(place.side, str(place.layer))
    label = f"{place.module} {what}" if several else what
    every = Distance.total(tensor.distance for tensor in tensors)
    return Row(label, place.module, place.layer, _by_part(tensors), every)


def _by_part(tensors: Iterable[TensorDifference]) -> dict[str, Distance]:
    groups: dict[str, list[Distance]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.part, []).append(tensor.distance)
    return {part: Distance.total(groups[part]) for part in PARTS if part in groups}


def most_changed(difference: Difference, measure: str, count: int) -> list[TensorDifference]:
    """The tensors that changed most, the first of them most.

    Parameters:
        difference: of two models.
        measure: one of `MEASURES`; the least cosine is the greatest change.
        count: how many.
    """

    def change(tensor: TensorDifference) -> float:
        value = MEASURES[measure](tensor.distance)
        if measure == "cosine":
            return 1 - value if value is not None else float(tensor.distance.apart > 0)
        return float("inf") if value is None else value

    return sorted(difference.tensors, key=change, reverse=True)[:count]
