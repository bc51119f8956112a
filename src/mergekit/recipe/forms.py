"""What may stand at a place of a recipe: the vocabulary in which the recipe language is described.

A form reads a node, reporting everything that is wrong with it, and describes itself as JSON Schema. `language.py`
puts forms together to the table of the whole language.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mergekit.errors import Findings, Place
from mergekit.recipe.nodes import Leaf, Listing, Node, Table, describe
from mergekit.recipe.settings import Scalar, coerce
from mergekit.recipe.spelling import nearest

T = TypeVar("T")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Names that the recipe language takes from outside.

    Parameters:
        methods: the merge methods.
        parameters: the parameters of all methods together.
        installed: finds the names of further methods; asked only where a name is none of `methods`.
    """

    methods: frozenset[str]
    parameters: frozenset[str]
    installed: Callable[[], Iterable[str]] = tuple


@dataclass(frozen=True, slots=True)
class Reading:
    """What a form needs to know to read a node.

    Parameters:
        file: name of the file, or None.
        findings: where mistakes are reported.
        vocabulary: names of methods and parameters.
        homes: key to the nouns of the records that have it.
        structure: noun of every record that holds parameters to its keys.
        lines: path to line number.
    """

    file: str | None
    findings: Findings
    vocabulary: Vocabulary
    homes: Mapping[str, tuple[str, ...]]
    structure: Mapping[str, tuple[str, ...]]
    lines: Mapping[str, int]

    def error(self, node: Node, what: str, expected: str | None = None, hint: str | None = None) -> None:
        """Report a mistake at `node`."""
        self.findings.error(what, Place(node.path, self.file, node.line), expected, hint)

    def warn(self, node: Node, what: str, expected: str | None = None, hint: str | None = None) -> None:
        """Report something at `node` that has no effect."""
        self.findings.warn(what, Place(node.path, self.file, node.line), expected, hint)


class Form(ABC, Generic[T]):
    """What may stand at a place; `noun` names it with its article: ``a model reference``."""

    __slots__ = ()
    noun: str

    @property
    def expected(self) -> str:
        """How it is written, for messages."""
        return self._expected()

    def read(self, node: Node, reading: Reading) -> T | None:
        """Return what `node` means, or None after reporting why it means nothing."""
        if is_null(node):
            return self.refuse(node, reading)
        return self._read(node, reading)

    def schema(self) -> Json:
        """Describe the form as JSON Schema; ``$ref`` stands for what depends on the vocabulary."""
        return self._schema()

    def parts(self) -> Iterator[Form[Any]]:
        """Yield the forms that this one is made of."""
        yield from self._parts()

    def refuse(self, node: Node, reading: Reading, hint: str | None = None) -> T | None:
        """Report that `node` is something else altogether; return None."""
        reading.error(node, f"{describe(node)} is not {self.noun}", self.expected, hint)
        return None

    def _expected(self) -> str:
        return self.noun

    @abstractmethod
    def _read(self, node: Node, reading: Reading) -> T | None: ...

    @abstractmethod
    def _schema(self) -> Json: ...

    def _parts(self) -> tuple[Form[Any], ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Text(Form[T]):
    """Text with a meaning.

    Parameters:
        noun: what it is.
        parse: turns the text into its meaning, or raises ValueError with a message.
        written: how it is written.
        pattern: regular expression of the whole text, for editors; what counts is `parse`.
    """

    noun: str
    parse: Callable[[str], T]
    written: str = "text"
    pattern: str | None = None

    def _expected(self) -> str:
        return self.written

    def _read(self, node: Node, reading: Reading) -> T | None:
        if not isinstance(node, Leaf):
            return self.refuse(node, reading)
        if isinstance(node.value, bool):
            return self.refuse(node, reading, f'`"{node.text}"`, in quotes, if this text is meant')
        # Numbers are taken by their letters: a commit such as 1234567 is a number for YAML.
        try:
            return self.parse(node.text)
        except ValueError as error:
            reading.error(node, str(error), self.expected)
            return None

    def _schema(self) -> Json:
        return {"type": ["string", "number"]} | ({"pattern": f"^{self.pattern}$"} if self.pattern else {})


@dataclass(frozen=True, slots=True)
class Choice(Form[str]):
    """One of several names.

    Parameters:
        noun: what the names are.
        names: the names, or None for the methods of the vocabulary.
        prefix: text that may stand in front of a name and means nothing.
        others: pattern of further text that is allowed, or None.
        known: what people write instead of a name, in lower case.
        refused: names that are understood and not possible, with the reason.
        other: how further text is written, for messages.
    """

    noun: str
    names: frozenset[str] | None
    prefix: str = ""
    others: str | None = None
    known: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    other: str | None = None

    def _expected(self) -> str:
        if self.names is None:
            return f"the name of {self.noun}"
        return "one of " + ", ".join(f"`{name}`" for name in sorted(self.names))

    def _read(self, node: Node, reading: Reading) -> str | None:
        known = reading.vocabulary.methods if self.names is None else self.names
        written = node.text if isinstance(node, Leaf) else ""
        name = written.removeprefix(self.prefix)
        if name in known or (self.others and re.fullmatch(self.others, name)):
            return name
        names = sorted({*known, *(reading.vocabulary.installed() if self.names is None else ())})
        if name in names:
            return name
        meant = self.known.get(name.lower()) or nearest(name, names)
        reason = self.refused.get(name, f"{describe(node)} is not {self.noun}")
        expected = "one of " + ", ".join(f"`{name}`" for name in names) + (f", or `{self.other}`" if self.other else "")
        hint = meant or (self.other if "." in name else None)
        reading.error(node, reason, expected, hint and f"`{hint}`")
        return meant

    def _schema(self) -> Json:
        if self.names is None:
            return {"$ref": "#/$defs/method"}
        return {"enum": sorted({start + name for name in self.names for start in ("", self.prefix)})}


@dataclass(frozen=True, slots=True)
class Whole(Form[int]):
    """A whole number, at least `low`."""

    noun: str
    low: int

    def _read(self, node: Node, reading: Reading) -> int | None:
        number = whole(node)
        if number is None or number < self.low:
            return self.refuse(node, reading)
        return number

    def _schema(self) -> Json:
        return {"type": "integer", "minimum": self.low}


@dataclass(frozen=True, slots=True)
class Flag(Form[bool]):
    """True or false."""

    noun: str = "true or false"

    def _read(self, node: Node, reading: Reading) -> bool | None:
        try:
            return bool(coerce(scalar(node), "bool"))
        except ValueError:
            return self.refuse(node, reading)

    def _schema(self) -> Json:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Many(Form[tuple[T, ...]]):
    """A list of things of one form; None if one of them cannot be read."""

    item: Form[T]
    noun: str

    def _expected(self) -> str:
        return f"a list, each item after `- `, of {self.item.expected}"

    def _parts(self) -> tuple[Form[Any], ...]:
        return (self.item,)

    def _read(self, node: Node, reading: Reading) -> tuple[T, ...] | None:
        if not isinstance(node, Listing):
            return self.refuse(node, reading)
        items = [self.item.read(item, reading) for item in node.items]
        known = tuple(item for item in items if item is not None)
        return known if len(known) == len(items) else None

    def _schema(self) -> Json:
        return {"type": "array", "items": self.item.schema()}


@dataclass(frozen=True, slots=True)
class Named(Form[dict[str, T]]):
    """A mapping from free names to things of one form; None if one of them cannot be read."""

    item: Form[T]
    noun: str

    def _expected(self) -> str:
        return f"a mapping, `name: value`, of {self.item.expected}"

    def _parts(self) -> tuple[Form[Any], ...]:
        return (self.item,)

    def _read(self, node: Node, reading: Reading) -> dict[str, T] | None:
        if not isinstance(node, Table):
            return self.refuse(node, reading)
        items = {name: self.item.read(item, reading) for name, item in node.entries.items()}
        known = {name: item for name, item in items.items() if item is not None}
        return known if len(known) == len(items) else None

    def _schema(self) -> Json:
        return {"type": "object", "additionalProperties": self.item.schema()}


@dataclass(frozen=True, slots=True)
class Either(Form[T]):
    """One of two forms, told apart by `first_if`.

    Parameters:
        noun: what both are.
        first: the form of nodes for which `first_if` is true.
        second: the form of the others.
        first_if: decides by the look of the node.
    """

    noun: str
    first: Form[T]
    second: Form[T]
    first_if: Callable[[Node], bool]

    def _expected(self) -> str:
        return f"{self.second.expected}, or {self.first.expected}"

    def _parts(self) -> tuple[Form[Any], ...]:
        return (
            self.first,
            self.second,
        )

    def _read(self, node: Node, reading: Reading) -> T | None:
        return (self.first if self.first_if(node) else self.second).read(node, reading)

    def _schema(self) -> Json:
        return any_of(self.first.schema(), self.second.schema())


def is_table(node: Node) -> bool:
    """Tell whether a node is a mapping."""
    return isinstance(node, Table)


def whole(node: Node) -> int | None:
    """Return the whole number that a node stands for, or None; true and false are none."""
    try:
        value = scalar(node)
        return None if isinstance(value, bool) else int(coerce(value, "int"))
    except ValueError:
        return None


def scalar(node: Node) -> Scalar:
    """Return the value of a leaf.

    Raises:
        ValueError: if the node is a list, a mapping or null.
    """
    if not isinstance(node, Leaf) or node.value is None:
        raise ValueError(f"{describe(node)} is not a value")
    return node.value


def is_null(node: Node) -> bool:
    """Tell whether a node is null, which counts as not written."""
    return isinstance(node, Leaf) and node.value is None


def any_of(*schemas: Json) -> Json:
    """Describe what satisfies one of several schemas."""
    flat = [part for schema in schemas for part in (schema["anyOf"] if schema.keys() == {"anyOf"} else [schema])]
    return flat[0] if len(flat) == 1 else {"anyOf": flat}
