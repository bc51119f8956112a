"""Forms of settings, parameters and layer ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mergekit.recipe.forms import Choice, Form, Json, Reading, any_of, whole
from mergekit.recipe.model import Parameters
from mergekit.recipe.nodes import Leaf, Listing, Node, Table, describe
from mergekit.recipe.records import Record
from mergekit.recipe.settings import Case, Constant, Filtered, Gradient, Scalar, Setting

# Keys that published recipes carry under `parameters`.
_LEFTOVERS = frozenset({"dtype", "embed_slerp"})


@dataclass(frozen=True, slots=True)
class Series(Form[Constant | Gradient]):
    """A scalar or a list of scalars."""

    noun: str = "a value or a list of values"

    def _read(self, node: Node, reading: Reading) -> Constant | Gradient | None:
        if isinstance(node, Leaf):
            value = _scalar(node, reading)
            return None if value is None else Constant(value)
        if not isinstance(node, Listing):
            return self.refuse(node, reading)
        values = [_scalar(item, reading) for item in node.items]
        known = tuple(value for value in values if value is not None)
        return Gradient(known) if len(known) == len(values) else None

    def _schema(self) -> Json:
        return {"$ref": "#/$defs/series"}


@dataclass(frozen=True, slots=True)
class Word(Form[Constant]):
    """One of several words, for all tensors.

    Parameters:
        noun: what the words are.
        choice: the words.
    """

    noun: str
    choice: Choice

    def _expected(self) -> str:
        return self.choice.expected

    def _read(self, node: Node, reading: Reading) -> Constant | None:
        word = self.choice.read(node, reading)
        return None if word is None else Constant(word)

    def _schema(self) -> Json:
        return self.choice.schema()


@dataclass(frozen=True, slots=True)
class Settings(Form[Setting]):
    """What may differ between tensors: one value, or cases with a value each.

    Parameters:
        noun: what it is.
        value: the form of a value.
        case: the form of a conditional setting.
        written: how it is written.
    """

    noun: str
    value: Form[Any]
    case: Record[Case]
    written: str

    def _expected(self) -> str:
        return self.written

    def _parts(self) -> tuple[Form[Any], ...]:
        return (self.value, self.case)

    def _read(self, node: Node, reading: Reading) -> Setting | None:
        cases = node.items if isinstance(node, Listing) else (node,)
        conditional = [isinstance(case, Table) for case in cases]
        if not any(conditional):
            plain: Setting | None = self.value.read(node, reading)
            return plain
        if not all(conditional):
            what = "a setting mixes plain values with conditional settings"
            reading.error(node, what, self.expected, "writing the plain value as `{value: ...}`, last in the list")
            return None
        read = [self.case.read(case, reading) for case in cases]
        known = tuple(case for case in read if case is not None)
        return Filtered(known) if len(known) == len(read) else None

    def _schema(self) -> Json:
        case = self.case.schema()
        return any_of(self.value.schema(), case, {"type": "array", "items": case})


@dataclass(frozen=True, slots=True)
class ParameterTable(Form[Parameters]):
    """The ``parameters:`` mapping; settings that cannot be read are left out."""

    setting: Settings
    noun: str = "a mapping of parameters"

    def _expected(self) -> str:
        return "parameter names with their settings, such as `weight: 0.5`"

    def _parts(self) -> tuple[Form[Any], ...]:
        return (self.setting,)

    def _read(self, node: Node, reading: Reading) -> Parameters | None:
        if not isinstance(node, Table):
            return self.refuse(node, reading)
        settings = {
            name: self.setting.read(item, reading)
            for name, item in node.entries.items()
            if not _is_misplaced(name, item, reading)
        }
        return Parameters({name: setting for name, setting in settings.items() if setting is not None}, node.path)

    def _schema(self) -> Json:
        return {"$ref": "#/$defs/parameters"}


@dataclass(frozen=True, slots=True)
class Layers(Form[range]):
    """A half-open range of layers."""

    noun: str = "a range of layers"

    def _expected(self) -> str:
        return "`[start, end]`, two whole numbers with 0 <= start < end: layers `start` to `end - 1`, `end` is not used"

    def _read(self, node: Node, reading: Reading) -> range | None:
        bounds = [whole(item) for item in node.items] if isinstance(node, Listing) else []
        known = [bound for bound in bounds if bound is not None]
        if isinstance(node, Listing) and len(known) == len(bounds) == 2 and 0 <= known[0] < known[1]:
            return range(known[0], known[1])
        shown = (
            f"`[{', '.join(describe(item).strip('`') for item in node.items)}]`" if isinstance(node, Listing) else None
        )
        fix = f"`[{known[1]}, {known[0]}]`" if len(known) == 2 and 0 <= known[1] < known[0] else None
        reading.error(node, f"{shown or describe(node)} is not {self.noun}", self.expected, fix)
        return None

    def _schema(self) -> Json:
        return {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}


def _scalar(node: Node, reading: Reading) -> Scalar | None:
    expected = "a number, true, false or text"
    if not isinstance(node, Leaf) or node.value is None:
        reading.error(node, f"{describe(node)} is not a value", expected, "leaving it out to get the default")
        return None
    if isinstance(node.value, float) and not math.isfinite(node.value):
        reading.error(node, f"{describe(node)} is not finite", expected)
        return None
    return node.value


def _is_misplaced(name: str, node: Node, reading: Reading) -> bool:
    """Report a key that structures a recipe and stands among parameters."""
    homes = [title for title, names in reading.structure.items() if name in names]
    if not homes or name in _LEFTOVERS or name in reading.vocabulary.parameters:
        return False
    reading.error(
        node,
        f"`{name}` is not a parameter: it does not belong under `parameters`",
        f"`{name}` in {' or '.join(homes)}",
        "moving it out of `parameters`",
    )
    return True
