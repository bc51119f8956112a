"""The values that the parameters of a merge have, layer by layer and part by part, and what they mean in words.

Everything is read off the tasks of a plan: these are the values that the merge computes with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mergekit.layout import Layout
from mergekit.methods import Parameter
from mergekit.plan import Plan, TensorTask

Value = bool | int | float | str
Values = tuple[Value, ...]
"""The values of a parameter in one cell, ascending; one as a rule."""

_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_ENDS = (".weight", ".bias")


class Spot(NamedTuple):
    """Where an output tensor stands in a panel: module, layer (None outside of layers), side, part."""

    module: str
    layer: int | None
    side: str
    part: str


@dataclass(frozen=True, slots=True)
class Line:
    """A layer, or what stands before or after all layers.

    Parameters:
        label: for people: ``3``, ``before``.
        layer: its number in the output, or None.
        cells: values by part.
    """

    label: str
    layer: int | None
    cells: Mapping[str, Values]


@dataclass(frozen=True, slots=True)
class Panel:
    """The values of one parameter in one module of the output.

    Parameters:
        parameter: its name in recipes.
        model: the model whose values they are; None if all models share them.
        module: name of the module.
        parts: columns, in the order of the tensors.
        lines: from the first layer to the last.
        default: the value that the parameter has where the recipe gives none; None if it must.
    """

    parameter: str
    model: str | None
    module: str
    parts: tuple[str, ...]
    lines: tuple[Line, ...]
    default: Value | None

    @property
    def values(self) -> Values:
        """All values, ascending."""
        return _ascending(value for line in self.lines for own in line.cells.values() for value in own)

    @property
    def flat(self) -> bool:
        """Whether there is one value everywhere."""
        return len(self.values) == 1

    @property
    def title(self) -> str:
        """The parameter, whose it is, and where if there are several modules."""
        own = f"{self.parameter} of {self.model}" if self.model else self.parameter
        return own if self.module == "default" else f"{own}, in {self.module}"

    @property
    def constant(self) -> str:
        """The value of a flat panel, in words."""
        default = ", as by default" if self.values == (self.default,) else ""
        return f"{show_values(self.values)} everywhere{default}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a merge does, and with which values.

    Parameters:
        method: its name.
        sentences: what is what: pairs of label and text.
        panels: one for each parameter, model and module, in the order of the method's parameters.
    """

    method: str
    sentences: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]

    @property
    def flat(self) -> tuple[Panel, ...]:
        """Parameters that are the same everywhere."""
        return tuple(panel for panel in self.panels if panel.flat)

    @property
    def varied(self) -> tuple[Panel, ...]:
        """Parameters with something to be seen."""
        return tuple(panel for panel in self.panels if not panel.flat)


def show_value(value: Value) -> str:
    """A value as people read it.

    Example:
        >>> show_value(0.30000000000000004), show_value(True), show_value("l1")
        ('0.3', 'true', 'l1')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_values(values: Values) -> str:
    """The values of a cell: one, or the least and the greatest of several."""
    return " to ".join(dict.fromkeys(map(show_value, (values[0], values[-1])))) if values else ""


def _ascending(values: Iterator[Value] | Sequence[Value]) -> Values:
    return tuple(sorted(set(values), key=lambda value: (isinstance(value, str), value)))


def explain(plan: Plan) -> Explanation:
    """Gather the values of all parameters, and say what they refer to.

    Parameters:
        plan: the merge.
    """
    from mergekit.report.wording import sentences

    return Explanation(plan.method.name, tuple(sentences(plan)), tuple(_panels(plan)))


def spot_of(name: str, layout: Layout) -> Spot:
    """Where an output tensor stands; numbers within a layer, such as those of experts, become ``*``.

    Parameters:
        name: of the tensor.
        layout: of the donor, which may have fewer layers than the output.

    Example:
        >>> from mergekit.layout import read_layout
        >>> layout = read_layout({f"model.layers.{layer}.mlp.up_proj.weight": (4, 4) for layer in range(2)}, {})
        >>> spot_of("model.layers.5.mlp.experts.7.up_proj.weight", layout)
        Spot(module='default', layer=5, side='layer', part='mlp.experts.*.up_proj')
    """
    part = layout.parts.get(name)
    if part is not None and part.layer is None:
        return Spot(part.module, None, part.side, _short(name))
    for module in layout.modules:
        stack = module.stack
        if stack is not None and name.startswith(f"{stack.prefix}."):
            number, _, suffix = name.removeprefix(f"{stack.prefix}.").partition(".")
            if number.isdigit() and suffix:
                return Spot(module.name, int(number) - stack.first, "layer", _short(_NUMBER.sub(".*", suffix)))
    return Spot(part.module if part else layout.main.name, None, "post", _short(name))


def _short(name: str) -> str:
    return next((name.removesuffix(end) for end in _ENDS if name.endswith(end)), name)


class _Key(NamedTuple):
    """What a panel is about."""

    parameter: str
    model: int | None
    module: str


_Cells = dict[tuple[str, int, str], set[Value]]
"""Values by side, layer and part."""

_SIDES = ("pre", "layer", "post")
_LABELS = {"pre": "before", "post": "after"}


def _panels(plan: Plan) -> Iterator[Panel]:
    declared = {parameter.name: parameter for parameter in plan.method.parameters()}
    found: dict[_Key, _Cells] = {}
    for task in plan.tasks:
        if type(task.method) is not plan.method:
            continue
        spot = spot_of(task.out.name, plan.models[0].layout)
        for parameter in declared.values():
            for model, value in _values(task, parameter):
                cells = found.setdefault(_Key(parameter.name, model, spot.module), {})
                cells.setdefault((spot.side, spot.layer or 0, spot.part), set()).add(value)
    order = list(declared)
    for key in sorted(found, key=lambda key: (order.index(key.parameter), key.model or 0)):
        owner = None if key.model is None else str(plan.models[key.model].ref)
        lines = tuple(_lines(found[key]))
        parts = tuple(dict.fromkeys(part for _, _, part in found[key]))
        yield Panel(key.parameter, owner, key.module, parts, lines, declared[key.parameter].default)


def _values(task: TensorTask, parameter: Parameter) -> Iterator[tuple[int | None, Value]]:
    """Model and value, or one value for all models."""
    value = getattr(task.method, parameter.field)
    if parameter.per_model:
        models = (operand.model for operand in task.operands[task.based :])
        yield from zip(models, value, strict=True)
    else:
        yield None, value


def _lines(cells: _Cells) -> Iterator[Line]:
    rows: dict[tuple[int, int], dict[str, Values]] = {}
    for (own_side, layer, part), values in cells.items():
        rows.setdefault((_SIDES.index(own_side), layer), {})[part] = _ascending(tuple(values))
    for (place, layer), own in sorted(rows.items(), key=lambda row: row[0]):
        side = _SIDES[place]
        yield Line(_LABELS.get(side, str(layer)), layer if side == "layer" else None, own)
