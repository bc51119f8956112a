"""Make the output's tokens: those of one model that have rows, of several models together, and new ones.

Public: :class:`Choice`, :func:`within`, :func:`with_tokens`, :func:`unite`. All are pure: tables are never changed, and
nothing depends on the order of sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import final

from mergekit.errors import UnsupportedError
from mergekit.tokenizer.editing import edited
from mergekit.tokenizer.tables import Flags, TokenTable

_MOST = 6  # tokens in a remark

# Found in a text as it is, before it is normalised or cut, wherever it stands, and without the spaces around it: so
# the text of the token, and only that, is this one token. Not special: it stays in text that is decoded.
_PLAIN: Flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """A table of tokens, and how it came about.

    Parameters:
        table: the tokens.
        remarks: what a user should know, one sentence each.
        changed: whether it is another table than the one that it was made from.
        removed: tokens that are not in it any more, in the order of their ids.
    """

    table: TokenTable
    remarks: tuple[str, ...] = ()
    changed: bool = False
    removed: tuple[str, ...] = ()


def within(table: TokenTable, rows: int) -> Choice:
    """The tokens whose ids are below the number of rows of the model's matrix.

    Others leave the vocabulary, the added tokens and the merges that mention or make them.

    Raises:
        UnsupportedError: such a token is the unknown token, or put around every text.
    """
    removed = tuple(text for text, number in table.ids.items() if number >= rows)
    if not removed:
        return Choice(table)
    ids = {text: number for text, number in table.ids.items() if number < rows}
    added = {text: flags for text, flags in table.added.items() if text in ids}
    remark = f"{_count(removed)} of `{table.place}` left out, for which the model has no row: {_listed(removed)}"
    return Choice(edited(table, ids, added), (remark,), True, removed)


def with_tokens(table: TokenTable, texts: Iterable[str]) -> Choice:
    """The table with an added token for each text that is no token yet, with ids after the highest in the given order.

    Each is found in a text wherever it stands, and is one token there.

    Raises:
        UnsupportedError: a text is empty.
    """
    new = [text for text in dict.fromkeys(texts) if text not in table.ids]
    if not new:
        return Choice(table)
    if "" in new:
        raise UnsupportedError("an empty text cannot be a token")
    ids = dict(table.ids) | {text: table.size + number for number, text in enumerate(new)}
    added = dict(table.added) | dict.fromkeys(new, _PLAIN)
    return Choice(edited(table, ids, added), (), True)


def unite(base: TokenTable, others: Sequence[TokenTable], extra: Iterable[str] = ()) -> Choice:
    """The tokens of several models: the base's with their ids, then the others' in their order, each by its own ids.

    A new token that is an added token of any model is one here, with the flags of the first model in which it is. A
    token that is ordinary in the base and special in another model becomes special under its id.

    Other new tokens become entries of the vocabulary: they have an id and a row, but as added tokens they would be cut
    out of the middle of words. Text without new added tokens is cut just as by the base, with these exceptions:

    - characters that the base does not know may be covered by a new entry;
    - BPE with `ignore_merges`, WordPiece and WordLevel look up words and pieces in the vocabulary, and so use new
      entries.

    Parameters:
        base: whose ids stay.
        others: the other tables, in the order of the models.
        extra: texts that must be tokens, see :func:`with_tokens`.
    """
    flags = _flags(others)
    ids = dict(base.ids)
    following = base.size - len(ids)
    for text in (text for other in others for text in other.ids):
        if text not in ids:
            ids[text] = following + len(ids)
    promoted = [text for text in base.ids if text in flags and text not in base.added and flags[text]["special"]]
    new = list(ids)[len(base.ids) :]
    gained = {text: flags[text] for text in (*promoted, *new) if text in flags}
    plain = [text for text in new if text not in flags]
    grown = edited(base, ids, {**base.added, **gained}) if gained or plain else base
    remarks = (*_remarks(base, others, promoted, plain), *_conflicts(grown, [base, *others]))
    whole = with_tokens(grown, extra).table
    return Choice(whole, remarks, whole is not base)


def _flags(tables: Iterable[TokenTable]) -> dict[str, Flags]:
    """Flags of all added tokens, of each as its first table has them."""
    found: dict[str, Flags] = {}
    for table in tables:
        for text, flags in table.added.items():
            found.setdefault(text, flags)
    return found


def _remarks(
    base: TokenTable, others: Sequence[TokenTable], promoted: Sequence[str], plain: Sequence[str]
) -> Iterator[str]:
    strange = dict.fromkeys(other.kind for other in others if other.kind != base.kind)
    if strange:
        yield f"text is cut as by the base ({base.kind}); tokens come from {' and '.join(strange)} vocabularies, too"
    if promoted:
        yield f"{_count(promoted)} of the base made special, as in another model: {_listed(promoted)}"
    if plain:
        yield f"{_count(plain)} given an id and a row, {_use(base)}: {_listed(plain)}"


def _use(base: TokenTable) -> str:
    if base.kind in ("WordPiece", "WordLevel"):
        return f"and used wherever {base.kind} finds them"
    if base.content["model"].get("ignore_merges"):
        return "and used for whole words only, because text is cut as by the base"
    return "and not used in text that the base can spell, because text is cut as by the base"


def _conflicts(grown: TokenTable, tables: Sequence[TokenTable]) -> Iterator[str]:
    """Added tokens that are something else in another model."""
    unlike: dict[str, None] = {}
    plain: dict[str, None] = {}
    for table in tables:
        unlike |= {text: None for text, flags in table.added.items() if grown.added.get(text, flags) != flags}
        plain |= {text: None for text in table.added if text not in grown.added}
    if unlike:
        yield f"{_count(unlike)} with other flags in another model; the first one's stay: {_listed(unlike)}"
    if plain:
        yield f"{_count(plain)} of the base kept ordinary, though added ones in another model: {_listed(plain)}"


def _count(texts: Mapping[str, object] | Sequence[str]) -> str:
    return f"{len(texts):,} token{'' if len(texts) == 1 else 's'}"


def _listed(texts: Mapping[str, object] | Sequence[str]) -> str:
    rest = f" and {len(texts) - _MOST:,} more" if len(texts) > _MOST else ""
    return ", ".join(map(repr, islice(texts, _MOST))) + rest
