"""The tokens of a model by what they stand for, with the roles that its tokenizer gives to some.

Public: :class:`Tokens`, :func:`read_tokens`, :data:`ROLES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from mergekit.checkpoint import Checkpoint
from mergekit.errors import CheckpointError
from mergekit.surgery.spelling import Key, reader_of
from mergekit.tokenizer import TokenTable, read_table

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Roles of special tokens, in the order in which they count where one token has several."""

_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")


@final
@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a model.

    Parameters:
        table: as its tokenizer has them.
        roles: text of the special token by role.
    """

    table: TokenTable
    roles: Mapping[str, str]

    @cached_property
    def keys(self) -> Mapping[int, tuple[Key, ...]]:
        """What each token stands for by its id; of a special one first its roles, then its text."""
        read = reader_of(self.table)
        held: dict[str, tuple[Key, ...]] = {}
        for role in ROLES:
            if (text := self.roles.get(role)) is not None:
                held[text] = (*held.get(text, ()), Key("role", role))
        return {
            number: (*held.get(text, ()), Key("text", text) if text in self.table.added else read(text))
            for text, number in self.table.ids.items()
        }

    @cached_property
    def ids(self) -> Mapping[Key, int]:
        """The token for each key; of several the one with the lowest id."""
        found: dict[Key, int] = {}
        for number, keys in self.keys.items():
            for key in keys:
                found.setdefault(key, number)
        return found

    @cached_property
    def texts(self) -> Mapping[int, str]:
        """The tokens by id, as the tokenizer spells them."""
        return {number: text for text, number in self.table.ids.items()}


def read_tokens(checkpoint: Checkpoint) -> Tokens:
    """Read the tokens of a model and their roles; no code of the model is run.

    Parameters:
        checkpoint: the model. Roles are what special_tokens_map.json and tokenizer_config.json say, else config.json.

    Raises:
        CheckpointError: it has no tokenizer, or a file of it cannot be read.
        UnsupportedError: its tokenizer must be converted by transformers, which is not installed.
    """
    table = read_table(checkpoint)
    if table is None:
        what = "the model has no tokenizer"
        raise CheckpointError(what, place=str(checkpoint.root), expected="tokenizer.json, or files of an older one")
    return Tokens(table, _roles(checkpoint, table))


def _roles(checkpoint: Checkpoint, table: TokenTable) -> dict[str, str]:
    texts = {number: text for text, number in table.ids.items()}
    found: dict[str, str] = {}
    for role in ROLES:
        numbers = checkpoint.config.get(f"{role}_id")
        number = numbers[0] if isinstance(numbers, list) and numbers else numbers
        if isinstance(number, int) and number in texts:
            found[role] = texts[number]
    for name in _SETTINGS:
        settings = _settings(checkpoint, name)
        named = {role: _content(settings[role]) for role in ROLES if role in settings}
        found |= {role: text for role, text in named.items() if text in table.ids}
    return found


def _settings(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    text = checkpoint.text(name)
    try:
        found = {} if text is None else json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"not valid JSON: {error}", place=str(checkpoint.root / name)) from error
    return found if isinstance(found, dict) else {}


def _content(token: object) -> str:
    """The text of a token, which may be written with its flags; empty if none is named."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
