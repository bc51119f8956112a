"""Where each row of the output comes from: a row of the model, or nowhere yet.

Public: :class:`Origin`, :class:`Matches`, :class:`Matcher`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.surgery.spelling import Key
from mergekit.surgery.tokens import Tokens

Rows = NDArray[np.int64]
_ASCII = 128
_ABSENT = -1


class Origin(IntEnum):
    """How the row of a token comes about, in the order in which it is tried."""

    EXACT = 0
    MAPPED = 1
    BYTE = 2
    PREFIX = 3
    APPROXIMATED = 4
    ZERO = 5
    NO_TOKEN = 6


@final
@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """For each id of the donor's vocabulary, where its row comes from.

    Parameters:
        origins: an `Origin` for each id.
        rows: the model's row, -1 where there is none.
    """

    origins: NDArray[Any]
    rows: Rows

    def ids(self, origin: Origin) -> Rows:
        """The ids of one origin, ascending."""
        return np.flatnonzero(self.origins == origin)

    def shared(self, donor_rows: int) -> tuple[Rows, Rows]:
        """The tokens that both models have: their ids in the donor, ascending, and their rows in the model.

        Parameters:
            donor_rows: rows of the donor's matrix; tokens without one are not among them.
        """
        exact = self.ids(Origin.EXACT)
        exact = exact[exact < donor_rows]
        return exact, self.rows[exact]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are of each origin that occurs."""
        counted = np.bincount(self.origins, minlength=len(Origin)).tolist()
        return {origin.name.lower(): counted[origin] for origin in Origin if counted[origin]}


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Matcher:
    """Finds the model's rows for the donor's tokens.

    Parameters:
        donor: the tokens of the output.
        model: the tokens that have rows.
        donor_rows: rows of the donor's matrix.
        model_rows: rows of the model's matrix.
        prefixes: whether a token may take over the row of its longest beginning that is a token.
        twins: whether a token for an ASCII byte and the token of its character stand for each other.
        blind: whether missing rows are found without the donor's.
        token_map: donor's tokens that take over the row of a certain token of the model.
        trusted: ids of the model whose rows are good; None for all.
        junk: ids of the donor that get zeros.
    """

    donor: Tokens
    model: Tokens
    donor_rows: int
    model_rows: int
    prefixes: bool = False
    twins: bool = False
    blind: bool = False
    token_map: Mapping[str, str] = field(default_factory=dict)
    trusted: frozenset[int] | None = None
    junk: frozenset[int] = frozenset()

    def match(self) -> Matches:
        """Where the row of every token comes from: the first rule that applies."""
        size = self.donor.table.size
        matches = Matches(np.full(size, Origin.NO_TOKEN, np.int8), np.full(size, _ABSENT, np.int64))
        known = self._known()
        for number, keys in self.donor.keys.items():
            matches.origins[number], matches.rows[number] = self._row(number, keys, known)
        return matches

    def _known(self) -> dict[Key, int]:
        """The model's tokens that have a good row."""
        trusted = self.trusted
        return {
            key: row
            for key, row in self.model.ids.items()
            if row < self.model_rows and (trusted is None or row in trusted)
        }

    def _row(self, number: int, keys: tuple[Key, ...], known: Mapping[Key, int]) -> tuple[Origin, int]:
        if number in self.junk:
            return Origin.ZERO, _ABSENT
        for origin, candidates in self._candidates(number, keys):
            row = next((known[key] for key in candidates if key in known), None)
            if row is not None:
                return origin, row
        if number >= self.donor_rows and not self.blind:
            return Origin.ZERO, _ABSENT
        return Origin.APPROXIMATED, _ABSENT

    def _candidates(self, number: int, keys: tuple[Key, ...]) -> Iterator[tuple[Origin, Iterator[Key]]]:
        """What stands for a token in the model, best first."""
        wanted = self.token_map.get(self.donor.texts[number])
        if wanted is not None:
            yield Origin.MAPPED, iter(self.model.keys[self.model.table.ids[wanted]])
        yield Origin.EXACT, iter(keys)
        if self.twins:
            yield Origin.BYTE, (twin for key in keys if (twin := _twin(key)))
        if self.prefixes and len(keys) == 1:
            yield Origin.PREFIX, _beginnings(keys[0])


def _twin(key: Key) -> Key | None:
    """The character of an ASCII byte, or its byte.

    Beyond ASCII a character is not one byte: its bytes are those of UTF-8.
    """
    if key.kind == "role" or len(key.text) != 1 or ord(key.text) >= _ASCII:
        return None
    return Key("bytes" if key.kind == "text" else "text", key.text)


def _beginnings(key: Key) -> Iterator[Key]:
    """Shorter texts with which a text begins, the longest first; none of spaces only."""
    lengths = range(len(key.text) - 1, 0, -1) if key.kind == "text" else ()
    return (Key("text", key.text[:length]) for length in lengths if key.text[:length].strip())
