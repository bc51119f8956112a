"""Rows from the pieces that the model's own tokenizer cuts a new token's text into.

Public: :class:`Splitter`, :class:`Subword`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.errors import CheckpointError
from mergekit.surgery.approximation import Approximation, Role, Site, Targets
from mergekit.surgery.matrices import Matrix
from mergekit.surgery.spelling import Key
from mergekit.surgery.tokens import Tokens
from mergekit.tokenizer import TokenTable
from mergekit.tokenizer.editing import edited

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Array = NDArray[Any]

_NEVER = -1e6  # score of a Unigram piece that is not to be used


@final
@dataclass(frozen=True, eq=False)
class Splitter:
    """Cuts what the donor's tokens stand for into tokens of the model.

    Parameters:
        donor: the tokens that are cut.
        model: the tokens that they are cut into.
        without: tokens of the model that are not to be used.
    """

    donor: Tokens
    model: Tokens
    without: frozenset[str] = field(default=frozenset())

    def __call__(self, token: int) -> tuple[int, ...]:
        """The pieces of a token of the donor; none if the model's tokenizer has nothing for it."""
        key = self.donor.keys[token][-1]  # of a special token its text, not its role
        if key.kind == "bytes":
            return self._bytes(key.text.encode("latin-1"))
        return tuple(self._tokenizer.encode(key.text, add_special_tokens=False).ids)

    def _bytes(self, octets: bytes) -> tuple[int, ...]:
        """The tokens of single bytes, as far as the model has them."""
        keys = ((Key("bytes", chr(byte)), Key("text", chr(byte))) for byte in octets)
        ids = self.model.ids
        found = (next((ids[key] for key in pair if key in ids), None) for pair in keys)
        return tuple(number for number in found if number is not None)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """The model's tokenizer, which takes texts as they are: nothing is put before them."""
        from tokenizers import Tokenizer

        table = without(self.model.table, self.without)
        content = {part: _literal(value) for part, value in table.content.items() if part != "model"}
        try:
            tokenizer = Tokenizer.from_str(json.dumps({**content, "model": table.content["model"]}))
        except Exception as error:  # `tokenizers` raises nothing more special
            raise CheckpointError(f"`tokenizers` cannot load the tokenizer: {error}", place=table.place) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def _literal(part: Any) -> Any:
    """A step of a tokenizer that puts no space before a text."""
    if isinstance(part, list):
        return [_literal(each) for each in part if not (isinstance(each, dict) and each.get("type") == "Prepend")]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    changes = {"add_prefix_space": False, "prepend_scheme": "never"}
    return {key: changes.get(key, _literal(value)) for key, value in part.items()}


def without(table: TokenTable, texts: Iterable[str]) -> TokenTable:
    """A table whose tokenizer does not use some of its ordinary tokens; the others keep their ids.

    Parameters:
        table: it is not changed.
        texts: the tokens.

    Raises:
        UnsupportedError: the tokenizer cannot do without one of them.
    """
    gone = set(texts)
    if not gone:
        return table
    if table.kind != "Unigram":
        return edited(table, {text: number for text, number in table.ids.items() if text not in gone}, table.added)
    model: Mapping[str, Any] = table.content["model"]
    vocab = [[text, _NEVER if text in gone else score] for text, score in model["vocab"]]
    content = {**table.content, "model": {**model, "vocab": vocab}}
    return TokenTable(table.ids, table.added, table.kind, content, table.place)


@final
@dataclass(frozen=True, slots=True)
class Subword(Approximation):
    """The rows of the pieces into which the model's own tokenizer cuts the token's text.

    With the pieces' rows e₁ … eₙ: mean; sum; weighted_mean with weights 1 … n in the input embedding, where the last
    piece is the one whose state goes on, and n … 1 in the head, where the first piece is the one to be predicted;
    first_last, which is the last piece in the input embedding and the first one in the head. A token without pieces
    gets zeros.
    """

    blind: ClassVar[bool] = True
    summary: ClassVar[str] = "the rows of the pieces that the model's tokenizer cuts the token into"
    model: Matrix
    pieces: Callable[[int], tuple[int, ...]]
    role: Role
    method: str

    @classmethod
    def fit(cls, site: Site) -> Subword:
        """There is nothing to learn."""
        return cls(site.model, site.pieces, site.role, site.settings.subword_method)

    def approximate(self, targets: Targets) -> Array:
        """The combined rows."""
        rows = np.zeros((targets.tokens.size, self.model.width))
        for row, token in zip(rows, targets.tokens.tolist(), strict=True):
            pieces = [piece for piece in self.pieces(token) if piece < self.model.height]
            if pieces:
                row[:] = self._weights(len(pieces)) @ self.model.rows(np.array(pieces)).astype(np.float64)
        return rows

    def _weights(self, count: int) -> Array:
        ramp = np.arange(1.0, count + 1)
        by_method: dict[str, Array] = {
            "sum": np.ones(count),
            "mean": np.full(count, 1 / count),
            "weighted_mean": ramp / ramp.sum(),
            "first_last": (ramp == count).astype(np.float64),
        }
        found = by_method[self.method]
        return found if self.role == "embedding" else found[::-1]
