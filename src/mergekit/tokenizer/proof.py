"""Prove that a tokenizer.json is the table that it was made from, with the library that will read it.

Public: :func:`prove`, :data:`SAMPLES`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mergekit.tokenizer.tables import TokenTable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLES = (
    "The quick brown fox doesn't jump over 13 lazy dogs; it's 3.14159 o'clock, e.g. at 1,000,000 km/h!",
    "def merge(a: int, b: int = 0) -> int:\n    if a > b:\n\t\treturn a * b  # product\n    return [a][0]\n",
    '{"key": [1, 2.5e-3, null], "path": "C:\\\\temp\\\\x.txt", "url": "https://example.org/?q=a&b=c#d"}',
    "L'été à Besançon, Größe & Straße, año, Łódź, İstanbul, naïve façade",
    "Быстрая коричневая лиса; Η γρήγορη αλεπού; השועל המהיר; الثعلب البني السريع",
    "敏捷的棕色狐狸跳过懒狗。素早い茶色の狐。빠른 갈색 여우. तेज़ भूरी लोमड़ी. สุนัขจิ้งจอก",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 ∑∫√≈≠ ½ ① ™ \u200b\ufeff\u00a0 e\u0301",
    "  two   three    four\t\ttabs\n\n\nlines\r\n trailing   ",
    "0123456789 2024-02-29 12:34:56 0xDEADBEEF 1e-5",
)
"""Texts of the kinds that tokenizers treat differently."""

_MOST = 20  # complaints of one kind


def prove(table: TokenTable, text: str, rows: int | None = None, unedited: TokenTable | str | None = None) -> list[str]:
    """What is wrong with a tokenizer.json; nothing, if it loads and does what its table says.

    Checked are: the id of every token; that every id has a row; that the text of each special token is its one id; that
    sample texts are decoded to what they were, or at least, where a tokenizer loses something on purpose, as the
    unedited one decodes them.

    Parameters:
        table: what it should be.
        text: contents of tokenizer.json.
        rows: rows of the model's matrix, or None if they follow from the table.
        unedited: contents of the tokenizer.json that it was made from, or their table; None if it was not edited.
    """
    try:
        tokenizer = _loaded(text)
    except Exception as error:  # `tokenizers` raises nothing more special
        return [f"`tokenizers` cannot load it: {error}"]
    found = [*_wrong_ids(table, tokenizer), *_without_rows(table, rows), *_wrong_specials(table, tokenizer)]
    return found if unedited is None else [*found, *_wrong_samples(tokenizer, _unedited(unedited))]


def _loaded(text: str) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unedited(before: TokenTable | str) -> Tokenizer:
    return _loaded(before if isinstance(before, str) else json.dumps(before.content, ensure_ascii=False))


def _cut(complaints: list[str]) -> Iterator[str]:
    yield from complaints[:_MOST]
    if len(complaints) > _MOST:
        yield f"and {len(complaints) - _MOST:,} more of this kind"


def _wrong_ids(table: TokenTable, tokenizer: Tokenizer) -> Iterator[str]:
    real = tokenizer.get_vocab(with_added_tokens=True)
    unlike = {text for text, _ in table.ids.items() ^ real.items()} if real != table.ids else ()
    told = [(text, real.get(text), table.ids.get(text)) for text in sorted(unlike)]
    yield from _cut([f"token {text!r} has the id {got}, not {wanted}" for text, got, wanted in told])


def _without_rows(table: TokenTable, rows: int | None) -> Iterator[str]:
    height = table.size if rows is None else rows
    beyond = [(text, number) for text, number in table.ids.items() if number >= height]
    yield from _cut([f"token {text!r} has the id {number}, but there are {height} rows" for text, number in beyond])


def _wrong_specials(table: TokenTable, tokenizer: Tokenizer) -> Iterator[str]:
    special = [text for text, flags in table.added.items() if flags["special"]]
    cut = tokenizer.encode_batch(special, add_special_tokens=False)
    pairs = [(text, encoding.ids) for text, encoding in zip(special, cut, strict=True)]
    wrong = [(text, ids) for text, ids in pairs if ids != [table.ids[text]]]
    yield from _cut([f"special token {text!r} is cut into {ids}, not {[table.ids[text]]}" for text, ids in wrong])


def _wrong_samples(tokenizer: Tokenizer, unedited: Tokenizer) -> Iterator[str]:
    """Samples that the unedited tokenizer decodes to something better."""
    for sample in SAMPLES:
        before, _ = _round_trip(unedited, sample)
        decoded, tokens = _round_trip(tokenizer, sample)
        # What was lossy before (lower case, unknown characters) may become another text only where new tokens are used.
        same = decoded == before or (before != sample and any(unedited.token_to_id(text) is None for text in tokens))
        if not same and decoded != sample:
            yield f"a sample is decoded to {decoded!r}, not {before!r}"


def _round_trip(tokenizer: Tokenizer, text: str) -> tuple[str, list[str]]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.decode(encoding.ids, skip_special_tokens=False), encoding.tokens
