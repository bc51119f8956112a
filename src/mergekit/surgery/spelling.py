"""What a token stands for, however its tokenizer spells it.

Public: :class:`Key`, :func:`reader_of`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from mergekit.tokenizer import TokenTable

_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Key(NamedTuple):
    """What a token stands for; tokens of two vocabularies with one key are the same.

    Parameters:
        kind: "text"; "bytes" that are no text, or a token for one byte; "role" in the tokenizer, such as ``bos_token``.
        text: the text with a space where a word begins; bytes as characters of the same numbers; or the role.
    """

    kind: Literal["text", "bytes", "role"]
    text: str


Reader = Callable[[str], Key]
"""From a token, as tokenizer.json spells it, to what it stands for."""


def _byte_alphabet() -> dict[str, int]:
    """How byte-level tokenizers write bytes: printable ones as themselves, others as characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES: Mapping[str, int] = _byte_alphabet()
"""The character of each byte in byte-level vocabularies."""


def reader_of(table: TokenTable) -> Reader:
    """How ordinary tokens of a table are read; added tokens are text as they stand.

    The spelling is read off the tokenizer's own steps, not off the name of a class: byte-level alphabets, ``▁`` or
    another mark for spaces, ``##`` before pieces within words (and so a space before all others).
    """
    model = table.content["model"]
    steps = [step for part in _PARTS for step in _steps(table.content.get(part))]
    ending = model.get("end_of_word_suffix") or ""
    if any(step["type"] == "ByteLevel" for step in steps):
        return lambda token: _from_bytes(_ended(token, ending, "Ġ"))
    if table.kind == "WordPiece":
        prefix = model.get("continuing_subword_prefix") or "##"
        return lambda token: Key("text", token.removeprefix(prefix) if token.startswith(prefix) else f" {token}")
    mark = next((mark for step in steps if (mark := _mark(step))), None)
    return lambda token: _from_text(_ended(token, ending, " "), mark)


def _steps(part: object) -> Iterator[Mapping[str, Any]]:
    """A step of a tokenizer, or those that a sequence is made of."""
    if not isinstance(part, Mapping):
        return
    if isinstance(part.get("type"), str):
        yield part
    for value in part.values():
        for inner in value if isinstance(value, list) else ():
            yield from _steps(inner)


def _mark(step: Mapping[str, Any]) -> str | None:
    """What a step writes instead of a space, or reads as one."""
    if step["type"] == "Metaspace":
        return str(step.get("replacement") or _SPACE)
    pattern = step.get("pattern")
    known = (pattern.get("String"), step.get("content")) if isinstance(pattern, Mapping) else ()
    return _SPACE if step["type"] == "Replace" and _SPACE in known else None


def _ended(token: str, ending: str, space: str) -> str:
    return token[: -len(ending)] + space if ending and token.endswith(ending) else token


def _from_bytes(token: str) -> Key:
    if any(character not in BYTES for character in token):
        return Key("text", token)
    octets = bytes(BYTES[character] for character in token)
    try:
        return Key("text", octets.decode())
    except UnicodeDecodeError:
        return Key("bytes", octets.decode("latin-1"))


def _from_text(token: str, mark: str | None) -> Key:
    if found := _BYTE.fullmatch(token):
        return Key("bytes", chr(int(found[1], 16)))
    return Key("text", token.replace(mark, " ") if mark else token)
