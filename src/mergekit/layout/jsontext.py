"""Replace single values in a JSON text and leave every other character alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

Path: TypeAlias = tuple[str, ...]
Span: TypeAlias = tuple[int, int]

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _walk(text: str, start: int, path: Path, spans: dict[Path, Span]) -> int:
    """Record the span of the value at `start` and of all values inside; return its end."""
    if text[start] != "{":
        end: int = _DECODER.raw_decode(text, start)[1]
    else:
        at = _skip(text, start + 1)
        while text[at] != "}":
            key, at = _DECODER.raw_decode(text, at)
            value = _skip(text, _skip(text, at) + 1)
            at = _skip(text, _walk(text, value, (*path, key), spans))
            at = _skip(text, at + 1) if text[at] == "," else at
        end = at + 1
    spans[path] = (start, end)
    return end


def _rendered(value: object, old: str) -> str:
    """Write a value in the style of the text that it replaces: lists over several lines stay so."""
    opening = re.match(r"\[(\s*)", old)
    if not isinstance(value, list) or opening is None or "\n" not in opening[1]:
        return json.dumps(value)
    inner = opening[1].rpartition("\n")[2]
    closing = old.rstrip("]").rpartition("\n")[2]
    unit = inner.removeprefix(closing) or inner
    return json.dumps(value, indent=unit).replace("\n", "\n" + closing)


def _added(text: str, path: Path, value: object, spans: Mapping[Path, Span]) -> str:
    """Put a new entry behind the last one of its object."""
    start, end = spans[path[:-1]]
    entry = f"{json.dumps(path[-1])}: {json.dumps(value)}"
    siblings = [span[1] for known, span in spans.items() if known and known[:-1] == path[:-1]]
    if not siblings:
        return text[:start] + "{" + entry + "}" + text[end:]
    lead = text[start + 1 : _skip(text, start + 1)]
    last = max(siblings)
    return text[:last] + "," + (lead if "\n" in lead else " ") + entry + text[last:]


def rewrite(text: str, changes: Mapping[Path, object]) -> str:
    """Return a JSON text with some values replaced or added, all other characters as they were.

    Parameters:
        text: a valid JSON object.
        changes: new value by path of keys; a path that does not exist is added behind the last entry of its object,
            which must exist.

    Example:
        >>> rewrite('{"a": 1e-6, "b": {"c": [1,2]}}', {("b", "c"): [3], ("d",): True})
        '{"a": 1e-6, "b": {"c": [3]}, "d": true}'
    """
    for path, value in changes.items():
        spans: dict[Path, Span] = {}
        _walk(text, _skip(text, 0), (), spans)
        if path in spans:
            start, end = spans[path]
            text = text[:start] + _rendered(value, text[start:end]) + text[end:]
        else:
            text = _added(text, path, value, spans)
    return text


def without(text: str, paths: Iterable[Path]) -> str:
    """Return a JSON text without some entries, all other characters as they were.

    Parameters:
        text: a valid JSON object.
        paths: paths of keys; the entries must exist, none of them inside another.

    Example:
        >>> without('{"a": 1, "b": {"c": [1,2]}, "d": 3}', [("b",), ("d",)])
        '{"a": 1}'
    """
    for path in paths:
        spans: dict[Path, Span] = {}
        _walk(text, _skip(text, 0), (), spans)
        parent, own = spans[path[:-1]], spans[path]
        siblings = [span for known, span in spans.items() if known and known[:-1] == path[:-1]]
        before = max((end for _, end in siblings if end <= own[0]), default=parent[0] + 1)
        behind = text.find(",", own[1], min((start for start, _ in siblings if start >= own[1]), default=own[1]))
        # The first entry goes with the comma behind it, others with the one before them.
        first = before == parent[0] + 1
        start, stop = (_skip(text, before), _skip(text, behind + 1)) if first and behind >= 0 else (before, own[1])
        text = text[:start] + text[stop:]
    return text
