"""YAML text as a tree that knows paths and lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml
from yaml.constructor import SafeConstructor

from mergekit.errors import Findings, Place
from mergekit.recipe.settings import Scalar

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_DEPTH = 100  # levels; PyYAML's C parser crashes on some thousands, and no recipe has more than ten
_NODES = 200_000  # with aliases written out; a few lines of YAML can stand for billions
_CONSTRUCTOR = SafeConstructor()


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar: its value as YAML understands it (None for null) and as it is written."""

    path: str
    line: int
    value: Scalar | None
    text: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A list."""

    path: str
    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping whose keys are text; an entry has the line of its key."""

    path: str
    line: int
    entries: Mapping[str, Node]


Node = Leaf | Listing | Table


class UnreadableError(Exception):
    """The text cannot be understood as one YAML document."""

    def __init__(self, what: str, line: int | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what, self.line, self.hint = what, line, hint


@dataclass(slots=True)
class Document:
    """One YAML document.

    Parameters:
        root: the tree, or None if there is none.
        lines: path to line number, counted from 1.
    """

    root: Node | None
    lines: dict[str, int] = field(default_factory=dict)


def parse(text: str, file: str | None, findings: Findings) -> Document:
    """Read YAML text; what is wrong with it as YAML goes into `findings`."""
    document = Document(None)
    try:
        root = _compose(text)
        document.root = _Builder(file, findings, document.lines).build(root, "")
    except UnreadableError as error:
        findings.error(error.what, Place("", file, error.line), hint=error.hint)
    return document


def describe(node: Node) -> str:
    """Name a node in a message: the value itself if it is short."""
    if isinstance(node, Table):
        return "a mapping"
    if isinstance(node, Listing):
        return "a list" if node.items else "an empty list"
    if node.value is None:
        return "an empty value"
    return f"`{shorten(node.text)}`" if node.text else "an empty text"


def shorten(text: str) -> str:
    """Cut text that is too long for a message."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def _compose(text: str) -> yaml.Node:
    try:
        _survey(text)
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from None
    except yaml.reader.ReaderError as error:
        raise UnreadableError(f"the recipe is not plain text: {error.reason}", _first_strange_line(text)) from None
    except UnicodeError:
        raise UnreadableError("the recipe is not valid Unicode text", _first_strange_line(text)) from None
    if root is None:
        raise UnreadableError("the recipe is empty", hint="`merge_method: linear` with a list of `models:`")
    return root


def _survey(text: str) -> None:
    """Refuse several documents and deep nesting before anything recursive sees the text."""
    depth = documents = 0
    for event in yaml.parse(text, _Loader):
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1 if event.start_mark else None
        if documents > 1:
            hint = "one file for every recipe; a line `---` begins another document"
            raise UnreadableError("the file holds more than one YAML document", line, hint)
        if depth > _DEPTH:
            raise UnreadableError(f"the recipe is nested more than {_DEPTH} levels deep", line)


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> UnreadableError:
    mark = error.problem_mark or error.context_mark
    line = None if mark is None else mark.line + 1
    written = text.splitlines()[line - 1 : line] if line else []
    tab = any("\t" in part for part in written)
    return UnreadableError(
        f"the recipe is not valid YAML: {error.problem or error.context}",
        line,
        "indenting with spaces: YAML allows no tabs" if tab else None,
    )


def _first_strange_line(text: str) -> int | None:
    lines = text.split("\n")
    return next((number for number, line in enumerate(lines, 1) if yaml.reader.Reader.NON_PRINTABLE.search(line)), None)


@dataclass(slots=True)
class _Builder:
    """Turns PyYAML's nodes into ours, with aliases and merge keys (``<<``) written out."""

    file: str | None
    findings: Findings
    lines: dict[str, int]
    count: int = 0
    depth: int = 0

    def build(self, node: yaml.Node, path: str, line: int | None = None) -> Node:
        line = line or node.start_mark.line + 1
        self.count += 1
        if self.count > _NODES:
            raise UnreadableError(f"the recipe has more than {_NODES:,} values once its aliases are written out", line)
        if self.depth > _DEPTH:
            raise UnreadableError("an alias stands inside of what it stands for", line)
        self.depth += 1
        built = self._build(node, path, line)
        self.depth -= 1
        self.lines[path] = line
        return built

    def _build(self, node: yaml.Node, path: str, line: int) -> Node:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Table(path, line, self._entries(node, path))
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Listing(path, line, tuple(self.build(item, f"{path}[{i}]") for i, item in enumerate(node.value)))
        if isinstance(node, yaml.ScalarNode):
            return Leaf(path, line, _scalar(node, line), node.value)
        raise _strange_tag(node, line)

    def _entries(self, node: yaml.MappingNode, path: str) -> dict[str, Node]:
        own = [(key, value) for key, value in node.value if key.tag != _TAG + "merge"]
        merged = [value for key, value in node.value if key.tag == _TAG + "merge"]
        entries: dict[str, Node] = {}
        for value in merged:
            entries |= self._merged(value, path)
        return entries | self._own(own, path)

    def _own(self, pairs: list[tuple[yaml.Node, yaml.Node]], path: str) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key, value in pairs:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UnreadableError("a key of a mapping is not text", line)
            place = f"{path}.{key.value}" if path else key.value
            if key.value in entries:
                first = entries[key.value].line
                self.findings.error(
                    f"the key `{shorten(key.value)}` is given twice",
                    Place(place, self.file, line),
                    hint=f"keeping one of the two; the other is in line {first}",
                )
            entries[key.value] = self.build(value, place, line)
        return entries

    def _merged(self, node: yaml.Node, path: str) -> dict[str, Node]:
        """Expand the value of a merge key: of several mappings the first that has a key wins."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        entries: dict[str, Node] = {}
        for part in reversed(parts):
            if not isinstance(part, yaml.MappingNode):
                raise UnreadableError("`<<` takes mappings only", node.start_mark.line + 1)
            table = self.build(part, path)
            assert isinstance(table, Table)
            entries |= table.entries
        return entries


def _scalar(node: yaml.ScalarNode, line: int) -> Scalar | None:
    kind = node.tag.removeprefix(_TAG)
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return _CONSTRUCTOR.bool_values[node.value.lower()]
        if kind == "int":
            return int(_CONSTRUCTOR.construct_yaml_int(node))
        if kind == "float":
            return float(_CONSTRUCTOR.construct_yaml_float(node))
    except (ArithmeticError, LookupError, ValueError):
        return str(node.value)  # it looks like a number and is none: `0x_`
    if kind in ("str", "timestamp", "value", "merge"):
        return str(node.value)
    raise _strange_tag(node, line)


def _strange_tag(node: yaml.Node, line: int) -> UnreadableError:
    tag = node.tag.replace(_TAG, "!!")
    return UnreadableError(f"the YAML tag `{shorten(tag)}` has no meaning in a recipe", line, "leaving it out")
