"""How the vocabularies of several models lie to each other.

Public: :class:`Alignment`, :class:`Moved`, :func:`align`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from mergekit.tokenizer.tables import TokenTable

_EXAMPLES = 8


@final
@dataclass(frozen=True, slots=True)
class Moved:
    """A token that has another id than in the first model.

    Parameters:
        token: its text.
        id: in this model.
        first: in the first model.
    """

    token: str
    id: int
    first: int


@final
@dataclass(frozen=True, slots=True)
class Alignment:
    """The tokens of a model against those of the first one.

    Parameters:
        tokens: how many there are.
        size: the highest id and one.
        rows: rows of the model's matrix, or None if they are not known.
        kind: BPE, Unigram, WordPiece or WordLevel.
        equal: whether the models share all tokens and ids.
        shared: how many tokens have the same id in both.
        moved: those with another id.
        added: those that only this model has.
        absent: those that only the first one has.
        holes: ids below the size that no token has.
        beyond: tokens that have no row in the matrix.
        renumbered: tokens to which loaders give another id than the file says.
        unlike: tokens that are special, or added, in one of the two models only.
    """

    tokens: int
    size: int
    rows: int | None
    kind: str
    equal: bool
    shared: int
    moved: tuple[Moved, ...]
    added: tuple[str, ...]
    absent: tuple[str, ...]
    holes: tuple[int, ...]
    beyond: tuple[str, ...]
    renumbered: tuple[str, ...]
    unlike: tuple[str, ...]

    @property
    def padding(self) -> int | None:
        """Rows behind the last token's; None if the rows are not known."""
        return None if self.rows is None else max(self.rows - self.size, 0)

    def as_json(self, most: int | None = _EXAMPLES) -> dict[str, Any]:
        """Plain values: of each kind of tokens how many there are, and the first few.

        Parameters:
            most: how many; None for all.
        """
        listed: dict[str, Sequence[Any]] = {
            "moved": [{"token": one.token, "id": one.id, "first": one.first} for one in self.moved[:most]],
            "added": self.added,
            "absent": self.absent,
            "holes": self.holes,
            "beyond": self.beyond,
            "renumbered": self.renumbered,
            "unlike": self.unlike,
        }
        numbers = {"tokens": self.tokens, "size": self.size, "rows": self.rows, "padding": self.padding}
        counts = {
            kind: {"count": len(getattr(self, kind)), "first": list(found[:most])} for kind, found in listed.items()
        }
        return {"kind": self.kind, "equal": self.equal, **numbers, "shared": self.shared, **counts}


def align(tables: Sequence[TokenTable], rows: Sequence[int | None]) -> tuple[Alignment, ...]:
    """Compare vocabularies with the first of them, which is compared with itself.

    Parameters:
        tables: the tokens of each model.
        rows: the rows of each model's matrix, or None where they are not known.
    """
    return tuple(_aligned(tables[0], table, height) for table, height in zip(tables, rows, strict=True))


def _aligned(first: TokenTable, table: TokenTable, rows: int | None) -> Alignment:
    moved = (
        Moved(text, number, there)
        for text, number in table.ids.items()
        if (there := first.ids.get(text, number)) != number
    )
    both = [text for text in table.ids if text in first.ids]
    shifted = tuple(moved)
    return Alignment(
        tokens=len(table.ids),
        size=table.size,
        rows=rows,
        kind=table.kind,
        equal=table is first or dict(table.ids) == dict(first.ids),
        shared=len(both) - len(shifted),
        moved=shifted,
        added=tuple(text for text in table.ids if text not in first.ids),
        absent=tuple(text for text in first.ids if text not in table.ids),
        holes=table.holes,
        beyond=tuple(text for text, number in table.ids.items() if rows is not None and number >= rows),
        renumbered=tuple(table.renumbered),
        unlike=tuple(_unlike(first, table, both)),
    )


def _unlike(first: TokenTable, table: TokenTable, both: Iterable[str]) -> Iterable[str]:
    if table is first:
        return ()
    return (text for text in both if _role(first, text) != _role(table, text))


def _role(table: TokenTable, text: str) -> object:
    """None for an ordinary token, else whether it is special."""
    flags = table.added.get(text)
    return None if flags is None else flags["special"]
