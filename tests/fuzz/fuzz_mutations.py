"""Inputs that nearly are what a reader expects: a sound one, changed in bytes, in structure, or in both."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

_WORDS = (0, 1, 7, 8, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
_TEXTS = (
    b"{" * 40_000, b"[" * 40_000, b'{"a":' * 5_000, b"(" * 40_000, b"- " * 3_000, b"&a [*a, *a]", b"*a", b"<<: *a",
    b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 400, b"\\ud800", b"\\u0000", b"\0", b"\xff\xfe", b"\xed\xa0\x80",
    b"../../etc/passwd", b"/etc/passwd", b"C:\\x", b"..", b"!!python/object/apply:os.system [ls]", b"null", b"true",
    b"\x80\x04", b"cos\nsystem\n", b"(a+)+$", b"\n", b"\t", b"'", b'"', b",", b":", b"}", b"]", b"---\n", b"#",
)  # fmt: skip
_VALUES: Sequence[Any] = (
    None, True, False, 0, 1, -1, 3, 64, 2**22 - 1, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, -(2**70), 10**30, 0.5, -0.0,
    1e300,
    float("nan"), float("inf"), "", "a", "..", "../../etc/passwd", "/etc/passwd", "\ud800", "\0", "x" * 3000,
    "(a+)+$", "(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)$", ".*.*.*.*.*.*b", "(?P<a>x)", "[", "\\1",
    "F32", "BOOL", "F4", "BPE", "Unigram", "LORA", "model.safetensors", [], {}, [[]], [0, 1], ["a", 1.5], {"": {}},
    {"a": {"a": {"a": 1}}}, [1] * 40, list(range(3000)),
)  # fmt: skip


def _at(content: bytes, share: int) -> int:
    return len(content) * share >> 16


def _flip(content: bytes, share: int, word: int) -> bytes:
    if not content:
        return content
    place = min(_at(content, share), len(content) - 1)
    return content[:place] + bytes([content[place] ^ (1 << word % 8)]) + content[place + 1 :]


def _cut(content: bytes, share: int, _word: int) -> bytes:
    return content[: _at(content, share)]


def _drop(content: bytes, share: int, word: int) -> bytes:
    place = _at(content, share)
    return content[:place] + content[place + 1 + word % 16 :]


def _repeat(content: bytes, share: int, word: int) -> bytes:
    place, length = _at(content, share), 1 + word % 64
    return content[: place + length] + content[place:]


def _insert(content: bytes, share: int, word: int) -> bytes:
    place = _at(content, share)
    return content[:place] + _TEXTS[word % len(_TEXTS)] + content[place:]


def _number(width: int) -> Callable[[bytes, int, int], bytes]:
    """Overwrite a length, a count or an offset."""

    def overwrite(content: bytes, share: int, word: int) -> bytes:
        place = _at(content, share)
        value = _WORDS[word % len(_WORDS)] & ((1 << 8 * width) - 1)
        return content[:place] + value.to_bytes(width, "little") + content[place + width :]

    return overwrite


_CHANGES = (_flip, _flip, _cut, _drop, _repeat, _insert, _number(1), _number(2), _number(4), _number(8))
CHANGE = st.tuples(st.integers(0, len(_CHANGES) - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
"""What is done to bytes: kind, place as a share of the whole, and a number whose meaning depends on the kind."""

TREE_CHANGE = st.tuples(st.integers(0, 3), st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
"""What is done to a tree: kind, node, and value."""


def changed(content: bytes, changes: Sequence[tuple[int, int, int]]) -> bytes:
    """Bytes after some changes."""
    for kind, share, word in changes:
        content = _CHANGES[kind](content, share, word)
    return content


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a tree, as container and key."""
    keys: Sequence[Any] = (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    found = [(value, key) for key in keys]
    return found + [place for key in keys for place in _nodes(value[key])]


def changed_tree(tree: Any, changes: Sequence[tuple[int, int, int]]) -> Any:
    """A tree of JSON after some changes: values replaced, copied elsewhere, removed, or filed under another key."""
    for kind, node, word in changes:
        places, value = _nodes(tree), deepcopy(_VALUES[word % len(_VALUES)])
        if not places:
            return value
        container, key = places[node % len(places)]
        if kind == 0:
            container[key] = value
        elif kind == 1:
            other, from_key = places[word % len(places)]
            container[key] = deepcopy(other[from_key])
        elif kind == 2:
            del container[key]
        elif isinstance(container, dict):
            container[str(value)] = container.pop(key)
        else:
            container.append(value)
    return tree


def _json(content: bytes, tree: Sequence[tuple[int, int, int]]) -> bytes:
    return json.dumps(changed_tree(json.loads(content), tree)).encode("utf-8", "surrogatepass")


def _safetensors(content: bytes, tree: Sequence[tuple[int, int, int]], more: Sequence[tuple[int, int, int]]) -> bytes:
    """The JSON changed, with the right length before it and the tensors behind it."""
    length = int.from_bytes(content[:8], "little")
    header = changed(_json(content[8 : 8 + length], tree), more)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _zip(content: bytes, more: Sequence[tuple[int, int, int]]) -> bytes:
    """The pickle inside of an archive changed, and all of it put together again."""
    if not content.startswith(b"PK"):
        return changed(content, more)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            member = old.read(name)
            new.writestr(zipfile.ZipInfo(name), changed(member, more) if name.endswith(".pkl") else member)
    return stream.getvalue()


@st.composite
def inputs(draw: st.DrawFn, form: str, seeds: Sequence[bytes]) -> bytes:
    """Inputs for a reader.

    Parameters:
        draw: of hypothesis.
        form: of what it reads; see `fuzz_readers.Reader`.
        seeds: sound inputs.
    """
    content = seeds[draw(st.integers(0, len(seeds) - 1))]
    inside = form in ("json", "safetensors", "zip") and draw(st.booleans())
    if not inside:
        return changed(content, draw(st.lists(CHANGE, min_size=1, max_size=4)))
    if form == "zip":
        return _zip(content, draw(st.lists(CHANGE, min_size=1, max_size=4)))
    tree = draw(st.lists(TREE_CHANGE, min_size=1, max_size=3))
    more = draw(st.lists(CHANGE, max_size=1))
    return _safetensors(content, tree, more) if form == "safetensors" else changed(_json(content, tree), more)
