"""The vocabulary in the metadata of a GGUF file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mergekit.checkpoint.gguf.container import Container
from mergekit.errors import CheckpointError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PREFIX = "tokenizer.ggml."
_MODELS: Mapping[str, Literal["bytes", "pieces"]] = {"gpt2": "bytes", "llama": "pieces"}


@dataclass(frozen=True, slots=True)
class Split:
    """How text is cut into words; see ``splits.toml`` for the fields."""

    pattern: str
    digits: bool = False
    ignore_merges: bool = False
    begin: bool = False
    compose: bool = False


@cache
def splits() -> Mapping[str, Split]:
    """The table that is shipped with this package, by GGUF's names."""
    rows = tomllib.loads(Path(__file__).with_name("splits.toml").read_text(encoding="utf-8"))["splits"]
    return {name: Split(**{key: row[key] for key in row if key != "names"}) for row in rows for name in row["names"]}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file says about tokens.

    Parameters:
        kind: byte-pair merges over bytes, or SentencePiece's pieces with scores.
        tokens: by id.
        types: of the tokens: 1 normal, 2 unknown, 3 control, 4 defined by users, 5 unused, 6 byte.
        scores: of pieces, the greatest first in merging.
        merges: of byte pairs, the first one first.
        split: how text is cut before byte-pair merges.
        ids: of special tokens: bos, eos, eot, padding, unknown.
        begin: whether a text begins with bos.
        end: whether it ends with eos.
        space: whether a space is put before a text; of pieces only.
    """

    kind: Literal["bytes", "pieces"]
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    split: Split
    ids: Mapping[str, int]
    begin: bool
    end: bool
    space: bool

    def special(self, role: str) -> str | None:
        """The token with a role."""
        return self.tokens[self.ids[role]] if role in self.ids else None


def read_vocabulary(container: Container) -> tuple[Vocabulary | None, str]:
    """The vocabulary of a file, or why no tokenizer can be made of it.

    Parameters:
        container: the file.

    Raises:
        CheckpointError: the lists of the vocabulary contradict each other.
    """
    model, cut = _word(container, "model", "none"), _word(container, "pre", "default")
    tokens = _setting(container, "tokens", ())
    if not isinstance(tokens, (tuple, np.ndarray)) or not len(tokens) or model in ("none", "no_vocab"):
        return None, "the file has no tokenizer"
    if model not in _MODELS:
        return None, f"no tokenizer is written: this version cannot rebuild one of the kind `{model}`"
    kind = _MODELS[model]
    if kind == "bytes" and cut not in splits():
        return None, f"no tokenizer is written: how `{cut}` cuts text is not known"
    vocabulary = _vocabulary(container, kind, tokens, splits().get(cut, Split("")))
    _check(container, vocabulary)
    return vocabulary, ""


def _setting(container: Container, key: str, default: Any = None) -> Any:
    return container.metadata.get(_PREFIX + key, default)


def _word(container: Container, key: str, default: str) -> str:
    return str(_setting(container, key, default))[:60]


def _vocabulary(container: Container, kind: Literal["bytes", "pieces"], tokens: Any, split: Split) -> Vocabulary:
    roles = {role: _setting(container, f"{role}_token_id") for role in ("bos", "eos", "eot", "padding", "unknown")}
    return Vocabulary(
        kind=kind,
        tokens=tokens,
        types=_numbers(container, "token_type"),
        scores=_numbers(container, "scores") if kind == "pieces" else (),
        merges=_setting(container, "merges", ()) if kind == "bytes" else (),
        split=split,
        ids={role: id for role, id in roles.items() if type(id) is int and 0 <= id < len(tokens)},
        begin=_setting(container, "add_bos_token", split.begin or kind == "pieces") is True,
        end=_setting(container, "add_eos_token", False) is True,
        space=_setting(container, "add_space_prefix", True) is True,
    )


def _numbers(container: Container, key: str) -> Sequence[Any]:
    value = _setting(container, key, ())
    return value.tolist() if isinstance(value, np.ndarray) else ()


def _check(container: Container, vocabulary: Vocabulary) -> None:
    def wrong(what: str, expected: str) -> CheckpointError:
        return CheckpointError(what, place=str(container.file), expected=expected)

    for key, texts in (("tokens", vocabulary.tokens), ("merges", vocabulary.merges)):
        if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
            raise wrong(f"`{_PREFIX}{key}` is not a list of strings", "a list of strings")
    count = len(vocabulary.tokens)
    for key, values in (("token_type", vocabulary.types), ("scores", vocabulary.scores)):
        if len(values) not in ((count,) if key == "scores" and vocabulary.kind == "pieces" else (0, count)):
            raise wrong(f"`{_PREFIX}{key}` has {len(values):,} entries", f"{count:,}, one for each token")
    if len(set(vocabulary.tokens)) < count:
        raise wrong(f"`{_PREFIX}tokens` has a token twice", "distinct tokens")
    if bad := next((merge for merge in vocabulary.merges if merge.count(" ") != 1), None):
        raise wrong(f"{bad[:60]!r} is not a merge", "two parts and a space between them")
