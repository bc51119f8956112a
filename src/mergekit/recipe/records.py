"""Mappings with fixed keys, and what a key that is none of them was meant to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mergekit.errors import Place
from mergekit.recipe.forms import Form, Json, Reading, T, any_of, is_null
from mergekit.recipe.model import line_of
from mergekit.recipe.nodes import Leaf, Node, Table, shorten
from mergekit.recipe.spelling import nearest


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a record.

    Parameters:
        name: the key.
        form: what its value may be.
        about: what it does, in a sentence without a full stop.
        required: whether it must be there.
        known: other names that people give it.
    """

    name: str
    form: Form[Any]
    about: str
    required: bool = False
    known: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fields:
    """The values of a record: a key that is written and could not be read is there with None.

    Parameters:
        node: the node of the record.
        values: key to value.
        reading: for further checks.
    """

    node: Node
    values: Mapping[str, Any]
    reading: Reading

    @property
    def path(self) -> str:
        """Path of the record."""
        return self.node.path

    def error(self, what: str, expected: str | None = None, hint: str | None = None, path: str | None = None) -> None:
        """Report a mistake of the record, or of what stands at `path`."""
        path = self.path if path is None else path
        place = Place(path, self.reading.file, line_of(path, self.reading.lines))
        self.reading.findings.error(what, place, expected, hint)

    def optional(self, name: str) -> Any:
        """Return a value, or None where it is not written or not readable."""
        return self.values.get(name)

    def broken(self, *names: str) -> bool:
        """Tell whether one of these keys is written and could not be read."""
        return any(name in self.values and self.values[name] is None for name in names)


@dataclass(frozen=True, slots=True)
class Record(Form[T]):
    """A mapping with fixed keys.

    Parameters:
        noun: what it is, with its article: ``a model entry``.
        keys: its keys.
        build: makes its meaning from the values of its keys.
        main: the key that a bare value most likely stands for, or None.
        rules: further JSON Schema.
    """

    noun: str
    keys: tuple[Key, ...]
    build: Callable[[Fields], T | None]
    main: str | None = None
    rules: Json = field(default_factory=dict)

    def _expected(self) -> str:
        return f"{self.noun}: a mapping with {', '.join(f'`{key.name}`' for key in self.keys)}"

    @property
    def names(self) -> tuple[str, ...]:
        """Its keys in order."""
        return tuple(key.name for key in self.keys)

    def _parts(self) -> tuple[Form[Any], ...]:
        return tuple(key.form for key in self.keys)

    def _read(self, node: Node, reading: Reading) -> T | None:
        if isinstance(node, Table):
            entries = _Sorting(self, node, reading).entries()
        elif self.main and isinstance(node, Leaf) and node.value is not None:
            pair = f"{self.main}: {shorten(node.text)}"
            self.refuse(node, reading, f"`- {pair}`" if node.path.endswith("]") else f"`{{{pair}}}`")
            entries = {self.main: node}
        else:
            self.refuse(node, reading)
            return None
        written = {name: entry for name, entry in entries.items() if not is_null(entry)}
        if not self._complete(node, entries, written, reading):
            return None
        values = {key.name: key.form.read(written[key.name], reading) for key in self.keys if key.name in written}
        return self.build(Fields(node, values, reading))

    def _complete(self, node: Node, entries: Mapping[str, Node], written: Mapping[str, Node], reading: Reading) -> bool:
        """Report required keys that are missing; what is there is read all the same, for its own mistakes."""
        missing = [key for key in self.keys if key.required and key.name not in written]
        for key in missing:
            state = "is empty" if key.name in entries else f"is missing from {self.noun}"
            reading.error(entries.get(key.name, node), f"`{key.name}` {state}", f"`{key.name}`: {key.form.expected}")
        if missing:
            for key in self.keys:
                if key.name in written:
                    key.form.read(written[key.name], reading)
        return not missing

    def _schema(self) -> Json:
        properties = {key.name: _documented(key) for key in self.keys}
        required = [key.name for key in self.keys if key.required]
        schema: Json = {"type": "object", "properties": properties, "additionalProperties": False}
        return schema | ({"required": required} if required else {}) | self.rules


@dataclass(frozen=True, slots=True)
class _Sorting:
    """Finds out which key of a record every written key is, or was meant to be.

    A mistake whose fix is known is reported and then read as if it were fixed, so that one mistake gives one message
    and what stands inside is checked too.
    """

    record: Record[Any]
    node: Table
    reading: Reading

    def entries(self) -> dict[str, Node]:
        names = self.record.names
        entries = {name: node for name, node in self.node.entries.items() if name in names}
        parameters: dict[str, Node] = {}
        for name, node in self.node.entries.items():
            if name in names:
                continue
            key = self._meant(name)
            if key:
                what = f"unknown key `{name}` in {self.record.noun}"
                self.reading.error(node, what, self._allowed(), f"`{key}`")
                entries.setdefault(key, node)
            else:
                parameter = self._stray(name, node)
                parameters |= {parameter: node} if parameter else {}
        return self._with_parameters(entries, parameters)

    def _meant(self, name: str) -> str | None:
        known = {other: key.name for key in self.record.keys for other in key.known}
        return known.get(name.lower()) or nearest(name, self.record.names)

    def _allowed(self) -> str:
        return "one of " + ", ".join(f"`{name}`" for name in self.record.names)

    def _stray(self, name: str, node: Node) -> str | None:
        """Report a key that is none of the record's; return the parameter that it is meant to be, if it is one."""
        parameters, homes = self.reading.vocabulary.parameters, self.reading.homes
        meant = name if name in parameters | homes.keys() else nearest(name, parameters | homes.keys())
        if meant is None:
            what = f"unknown key `{shorten(name)}` in {self.record.noun}: it has no effect"
            self.reading.warn(node, what, self._allowed())
            return None
        state = "does not belong in" if meant == name else "is not a key of"
        what = f"`{name}` {state} {self.record.noun}"
        if meant in parameters:
            hint = f"`parameters: {{{meant}: ...}}`" if "parameters" in self.record.names else None
            self.reading.error(node, what, f"`{meant}`, as a parameter, under `parameters:`", hint)
            return meant
        home = " or ".join(homes[meant])
        self.reading.error(node, what, f"`{meant}` in {home}", f"moving it to {home}" if meant == name else None)
        return None

    def _with_parameters(self, entries: dict[str, Node], strays: dict[str, Node]) -> dict[str, Node]:
        if not strays or "parameters" not in self.record.names:
            return entries
        inner = entries.get("parameters")
        if isinstance(inner, Table):
            return entries | {"parameters": replace(inner, entries={**strays, **inner.entries})}
        path = f"{self.node.path}.parameters".removeprefix(".")
        return {"parameters": Table(path, self.node.line, strays)} | entries


def homes(root: Form[Any]) -> dict[str, tuple[str, ...]]:
    """Return for every key of every record the nouns of the records that have it."""
    found: dict[str, dict[str, None]] = {}
    for record in records(root):
        for name in record.names:
            found.setdefault(name, {})[record.noun] = None
    return {name: tuple(nouns) for name, nouns in found.items()}


def records(root: Form[Any]) -> Iterator[Record[Any]]:
    """Yield every record that can occur inside a form."""
    if isinstance(root, Record):
        yield root
    for part in root.parts():
        yield from records(part)


def structure(root: Form[Any]) -> dict[str, tuple[str, ...]]:
    """Return the keys of every record that holds parameters, by the record's noun."""
    return {record.noun: record.names for record in records(root) if "parameters" in record.names}


def _documented(key: Key) -> Json:
    schema = key.form.schema()
    if not key.required:
        schema = any_of(schema, {"type": "null"})
    return {"description": key.about} | schema
