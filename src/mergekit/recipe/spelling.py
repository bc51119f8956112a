"""Finding the name that was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that `name` is most likely a misspelling of, or None.

    Case, hyphens, underscores and spaces do not count. Beyond that one edit is forgiven per four letters (an edit
    inserts, drops or replaces a letter, or swaps two neighbours). A name that contains a candidate as whole words is
    no misspelling of it: people who write `dare_density` mean something else than `density`.

    Parameters:
        name: what was written.
        candidates: the valid names; their order does not matter.

    Example:
        >>> nearest("wieght", ["weight", "density"]), nearest("DARE-ties", ["dare_ties", "ties"])
        ('weight', 'dare_ties')
        >>> nearest("dare_density", ["density"]) is None
        True
    """
    rated = ((_edits(_plain(name), _plain(other)), other) for other in candidates if not _contains(name, other))
    near = [(edits, other) for edits, other in rated if edits <= max(len(_plain(name)), len(_plain(other))) // 4]
    return min(near)[1] if near else None


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_\s]+", name.lower()) if word]


def _contains(name: str, other: str) -> bool:
    """Tell whether the words of `other` stand in a row among the more numerous words of `name`."""
    words, part = _words(name), _words(other)
    starts = range(len(words) - len(part) + 1)
    return len(words) > len(part) and any(words[start : start + len(part)] == part for start in starts)


def _edits(first: str, second: str) -> int:
    """Count the edits between two words: the restricted Damerau-Levenshtein distance.

    Words whose lengths differ too much to be near misses are not compared letter by letter, so that hostile input
    costs nothing.
    """
    if 4 * abs(len(first) - len(second)) > max(len(first), len(second)):
        return max(len(first), len(second))
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        earlier, before, row = before, row, [i]
        for j, other in enumerate(second, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                row[j] = min(row[j], earlier[j - 2] + 1)
    return row[-1]
