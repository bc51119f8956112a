"""What a model's tokenizer calls its rows: one id per token, as the library ``tokenizers`` numbers them.

Public: :class:`TokenTable`, :func:`read_table`, :func:`read_tables`, :func:`parse_table`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, pairwise
from typing import Any, Literal, TypeAlias, cast, final

from mergekit.checkpoint import Checkpoint
from mergekit.errors import CheckpointError
from mergekit.tokenizer.slow import converted_text

FILE = "tokenizer.json"
Kind: TypeAlias = Literal["BPE", "Unigram", "WordPiece", "WordLevel"]
Flags: TypeAlias = Mapping[str, object]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

_KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
_MOST_IDS = 2**22  # the largest vocabularies have a million tokens; one number must not make millions of rows


@final
@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """Every token of a model and its id.

    Two tables are the same object if they were read from equal files; otherwise compare `ids` and `added`.

    Parameters:
        ids: id by token, as tokenizer.json spells tokens, in ascending order of ids. Ids are those that ``tokenizers``
            gives: it keeps the ids of `model.vocab`, and numbers other added tokens itself, whatever the file says.
        added: flags by added token, in the order of the file: tokens that are found in a text before it is cut.
        kind: how ordinary text is cut.
        content: tokenizer.json, parsed; it is never changed.
        place: where it was read, for messages.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Flags]
    kind: Kind
    content: Mapping[str, Any]
    place: str

    @property
    def size(self) -> int:
        """The rows that a matrix needs for all tokens: the highest id and one."""
        return next(reversed(cast("dict[str, int]", self.ids).values()), -1) + 1

    @property
    def holes(self) -> tuple[int, ...]:
        """Ids below the size that no token has, ascending."""
        return tuple(chain.from_iterable(range(a + 1, b) for a, b in pairwise([-1, *self.ids.values()])))

    @property
    def renumbered(self) -> Mapping[str, int]:
        """Added tokens for which the file promises an id that they do not have, with the promised id."""
        promised = _promised(self.content)
        return {text: promised[text] for text in self.added if promised[text] != self.ids[text]}


def read_table(checkpoint: Checkpoint) -> TokenTable | None:
    """Read the tokens of a model; None if it has no tokenizer files at all.

    A model with files of slow tokenizers only is converted by transformers. No code of the model is run.

    Raises:
        CheckpointError: tokenizer.json is not what ``tokenizers`` writes, or slow files cannot be converted.
        UnsupportedError: slow files are to be converted, and transformers is not installed.
    """
    return read_tables([checkpoint])[0]


def read_tables(checkpoints: Sequence[Checkpoint]) -> list[TokenTable | None]:
    """Read the tokens of several models; equal files are parsed once and give the same object.

    Raises:
        CheckpointError: see :func:`read_table`.
        UnsupportedError: see :func:`read_table`.
    """
    known: dict[str, TokenTable] = {}
    found: list[TokenTable | None] = []
    for checkpoint in checkpoints:
        text = _text(checkpoint)
        if text is not None and text not in known:
            known[text] = parse_table(text, str(checkpoint.root / FILE))
        found.append(None if text is None else known[text])
    return found


def _text(checkpoint: Checkpoint) -> str | None:
    place = str(checkpoint.root / FILE)
    try:
        text = checkpoint.text(FILE)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"not UTF-8: {error.reason} at byte {error.start}", place=place) from error
    except OSError as error:
        raise CheckpointError(f"the tokenizer cannot be read: {error.strerror}", place=place) from error
    return converted_text(checkpoint) if text is None else text


def parse_table(text: str, place: str) -> TokenTable:
    """The tokens of a tokenizer.json.

    Parameters:
        text: its contents.
        place: where it is from, for messages.

    Raises:
        CheckpointError: it is not what ``tokenizers`` writes.
    """
    content = _object(text, place)
    model = content.get("model")
    if not isinstance(model, dict):
        raise CheckpointError("`model` is not an object", place=place)
    kind = _kind(model, place)
    vocab = _listed(model, place) if kind == "Unigram" else _mapped(model, place)
    added = _added(content, place)
    current, former = numbered(vocab, len(model["vocab"]), added)
    ids = vocab | (former if former == _promised(content) else current)
    _check_ids(ids, place)
    ordered = dict(sorted(ids.items(), key=lambda entry: entry[1]))
    return TokenTable(ordered, added, kind, content, place)


def _promised(content: Mapping[str, Any]) -> dict[str, int]:
    """The ids of added tokens in the file; of equal tokens the first counts."""
    return {entry["content"]: entry["id"] for entry in reversed(content.get("added_tokens") or []) if entry["content"]}


def numbered(vocab: Mapping[str, int], length: int, added: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
    """The ids that ``tokenizers`` gives to added tokens when it loads a file: version 0.23, and those before.

    A token of the vocabulary keeps its id. Others are counted on from the *number* of entries of the vocabulary,
    whatever the file says. Old versions go on from the highest id of an added token before them, if that is more. So
    the two differ only where the vocabulary has holes.

    Parameters:
        vocab: id by token of `model.vocab`.
        length: entries of `model.vocab`.
        added: added tokens in the order of the file.

    Example:
        >>> numbered({"a": 0, "b": 5}, 2, ["b", "<x>", "<y>"])
        ({'b': 5, '<x>': 2, '<y>': 3}, {'b': 5, '<x>': 6, '<y>': 7})
    """
    following = count(length)
    new: dict[str, int] = {}
    old: dict[str, int] = {}
    highest = -1
    for text in added:
        new[text] = vocab[text] if text in vocab else next(following)
        old[text] = vocab.get(text, max(highest + 1, length))
        highest = max(highest, old[text])
    return new, old


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError("half of a surrogate pair is not a character", place=place) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not valid JSON: {error}", place=place) from error
    if not isinstance(content, dict):
        raise CheckpointError("not a JSON object", place=place)
    return content


def _kind(model: Mapping[str, Any], place: str) -> Kind:
    # Files older than 2021 do not name the type.
    guessed = "Unigram" if isinstance(model.get("vocab"), list) else "BPE" if "merges" in model else None
    guessed = guessed or ("WordPiece" if "max_input_chars_per_word" in model else "WordLevel")
    kind = model.get("type", guessed)
    if kind not in _KINDS:
        raise CheckpointError(f"unknown `model.type` {kind!r}", place=place, expected=f"one of {', '.join(_KINDS)}")
    return cast("Kind", kind)


def _mapped(model: Mapping[str, Any], place: str) -> dict[str, int]:
    """The vocabulary of all kinds but Unigram."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise CheckpointError("`model.vocab` is not an object", place=place, expected="ids by token")
    for text, number in vocab.items():
        _check_id(text, number, place)
    return dict(vocab)


def _listed(model: Mapping[str, Any], place: str) -> dict[str, int]:
    """The vocabulary of Unigram: a token's id is its place; of equal tokens the last one counts."""
    vocab = model.get("vocab")
    if not isinstance(vocab, list) or not all(_is_piece(entry) for entry in vocab):
        expected = "pairs of a token and its score"
        raise CheckpointError("`model.vocab` is not a list of scored tokens", place=place, expected=expected)
    return {entry[0]: number for number, entry in enumerate(vocab)}


def _is_piece(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    return isinstance(entry[0], str) and isinstance(entry[1], int | float) and abs(entry[1]) < float("inf")


def _added(content: Mapping[str, Any], place: str) -> dict[str, Flags]:
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list):
        raise CheckpointError("`added_tokens` is not a list", place=place)
    added: dict[str, Flags] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CheckpointError("an entry of `added_tokens` has no `content`", place=place)
        text = entry["content"]
        _check_id(text, entry.get("id"), place)
        flags = {flag: entry.get(flag, False) for flag in FLAGS}
        if not all(isinstance(value, bool) for value in flags.values()):
            raise CheckpointError(f"a flag of the added token {text!r} is neither true nor false", place=place)
        # An empty token is skipped by `tokenizers`, and of equal ones the first counts.
        if text:
            added.setdefault(text, flags)
    return added


def _check_id(text: str, number: object, place: str) -> None:
    if type(number) is not int or not 0 <= number < _MOST_IDS:
        what = f"the id of token {text!r} is {number!r}"
        raise CheckpointError(what, place=place, expected=f"a whole number from 0 to {_MOST_IDS - 1}")


def _check_ids(ids: Mapping[str, int], place: str) -> None:
    owners: dict[int, str] = {}
    for text, number in ids.items():
        first = owners.setdefault(number, text)
        if first != text:
            raise CheckpointError(f"tokens {first!r} and {text!r} have the same id {number}", place=place)
