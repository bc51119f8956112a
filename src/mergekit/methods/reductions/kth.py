"""Exact order statistics over whole tensors, without a sort and without holding a tensor in memory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import BINS
from mergekit.methods.contract import Array, Block, Reduction, Search, Stats, Target

Numbers = NDArray[Any]

_TOP = 0x7FFFFFFF  # greatest magnitude, as bits
_NOTHING = 0xFFFFFFFF  # a cut that no magnitude passes
_LIKELY, _SURE = 0.5, 0.95  # share of a bracket that a few values make up: to count them at all, and no more of them
_FEW = 3  # values that are cheaper to count one by one than to sort into bins
_NO_VALUES: Numbers = np.empty(0, np.uint32)


def trimmed(entries: int, density: float) -> int:
    """How many entries trimming keeps: all at a density of 1, none at 0, else ``max(1, trunc(density · n))``.

    Example:
        >>> trimmed(1000, 0.2), trimmed(3, 0.2), trimmed(3, 0.0)
        (200, 1, 0)
    """
    if density <= 0:
        return 0
    return entries if density >= 1 else min(entries, max(1, int(density * entries)))


def nth_greatest(scores: Numbers, n: int) -> tuple[int, int]:
    """The score that n entries reach, and the place of the last of its ties that is among them, ties by lowest place.

    Example:
        >>> nth_greatest(np.array([7, 5, 9, 5, 5]), 3)
        (5, 1)
    """
    place = scores.size - n
    cut = np.partition(scores, place)[place]
    wanted = n - np.count_nonzero(scores > cut)
    return int(cut), int(np.flatnonzero(scores == cut)[wanted - 1])


class Score(ABC):
    """What entries are ordered by: a number ≥ 0 for each, which is ``|row − reference|``, in float32."""

    @abstractmethod
    def rows(self, block: Block) -> tuple[Array, Array]:
        """A row and its reference, shape (n,) each; a reference of shape (0,) stands for zeros."""


@final
@dataclass(frozen=True, slots=True)
class Magnitude(Score):
    """Magnitude of the delta of a model.

    Parameters:
        model: index among the models.
    """

    model: int

    def rows(self, block: Block) -> tuple[Array, Array]:
        """The model and the base."""
        return block.models[self.model], block.base


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """Which entries of each row are kept: those above the cut, and those equal to it up to the edge.

    Parameters:
        bits: uint32, shape (ranks, scores): bits, as a float32, of the least score kept.
        edges: int64, shape (ranks, scores): index of the last entry kept among those of exactly this score.
    """

    bits: Numbers
    edges: Numbers


@dataclass(slots=True)
class _Row:
    """The search for the cut of one delta.

    It goes through stages: "values" counts a few values, one of which is likely the cut; "bracket" narrows a range;
    "edge" finds the last tie that is kept.
    """

    keep: int
    stage: Literal["values", "bracket", "edge", "done"] = "bracket"
    values: Numbers = field(default_factory=lambda: np.empty(0, np.uint32))
    low: int = 0
    high: int = _TOP
    bits: int = 0
    edge: int = -1
    wanted: int = 0  # ties that are kept, then those of them in `grain`
    grain: int = -1  # grain of the last of them
    edges: bool = True  # whether it matters which ties are kept

    @property
    def shift(self) -> int:
        return max(0, (self.high - self.low).bit_length() - (BINS.bit_length() - 1))

    def guess(self, values: Numbers) -> None:
        """Count these values next, in ascending order."""
        self.values, self.stage = values, "values"

    def weigh(self, above: Numbers, equal: Numbers, entries: int) -> None:
        """Take the counts of the values: how many magnitudes exceed each, and how many equal it, per grain."""
        ties = equal.sum(axis=0, dtype=np.int64)
        found = np.flatnonzero((above < self.keep) & (self.keep <= above + ties))
        if not found.size:
            place = int(np.count_nonzero(self.keep <= above))
            self.low = int(self.values[place - 1]) + 1 if place else 0
            self.high = int(self.values[place]) - 1 if place < len(self.values) else _TOP
            self.stage = "bracket"
            return
        place = found[0]
        self.wanted = self.keep - int(above[place])
        if self._settled(int(self.values[place]), self.wanted == ties[place], entries):
            return
        passed = np.cumsum(equal[:, place], dtype=np.int64)
        self.grain = int(np.searchsorted(passed, self.wanted))
        self.wanted -= int(passed[self.grain]) - int(equal[self.grain, place])
        self.stage = "edge"

    def narrow(self, above: int, bins: Numbers, entries: int) -> None:
        """Take the counts of a bracket."""
        rank = self.keep - above
        from_top = np.cumsum(bins[0, ::-1], dtype=np.int64)
        if rank <= 0:
            self.low, self.high = self.high + 1, _TOP
        elif rank > from_top[-1]:
            self.low, self.high = 0, self.low - 1
        else:
            place = BINS - 1 - int(np.searchsorted(from_top, rank))
            wanted = rank - int(from_top[BINS - 1 - place] - bins[0, place])
            self.low, self.high = self.low + int(bins[1, place]), self.low + int(bins[2, place])
            if self.low == self.high and not self._settled(self.low, wanted == bins[0, place], entries):
                self.guess(np.array([self.low], np.uint32))

    def _settled(self, cut: int, all_ties: bool, entries: int) -> bool:
        """The cut is known; that is the end unless only some of its ties are kept."""
        self.bits = cut
        if all_ties or cut == 0 or not self.edges:  # a score of 0 adds nothing, kept or not
            self.finish(entries)
        return self.stage == "done"

    def settle(self, magnitudes: Numbers) -> None:
        """Take all magnitudes of the tensor."""
        cut, edge = nth_greatest(magnitudes, self.keep)
        if not self._settled(cut, False, magnitudes.size):
            self.finish(edge)

    def finish(self, edge: int) -> None:
        self.edge, self.stage = edge, "done"


@dataclass(slots=True)
class _Counts:
    """What one worker counts in one sweep: by score, or by score and rank."""

    equal: dict[int, list[Numbers]] = field(default_factory=dict)
    above: dict[int, Numbers] = field(default_factory=dict)
    beyond: dict[tuple[int, int], int] = field(default_factory=dict)
    bins: dict[tuple[int, int], Numbers] = field(default_factory=dict)
    edges: dict[tuple[int, int], int] = field(default_factory=dict)


@final
@dataclass(slots=True)
class _KthSearch(Search):
    """Searches for all ranks of all scores at once; `rows` holds them score by score."""

    target: Target
    scores: tuple[Score, ...]
    rows: list[list[_Row]]
    asked: list[Numbers] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ask()

    @property
    def done(self) -> bool:  # type: ignore[override]
        return all(row.stage == "done" for rows in self.rows for row in rows)

    def _ask(self) -> None:
        """Collect the values that are counted in the next sweep: one pass for all ranks of a score."""
        values = ([row.values for row in rows if row.stage == "values"] for rows in self.rows)
        self.asked = [np.unique(np.concatenate(found)) if found else _NO_VALUES for found in values]

    def scratch(self) -> _Counts:
        return _Counts()

    def wanted(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        unfinished = [row for rows in self.rows for row in rows if row.stage != "done"]
        if any(row.stage != "edge" for row in unfinished):
            yield start, stop
            return
        grain = self.target.grain
        for place in sorted({row.grain * grain for row in unfinished}):
            if start <= place < stop:
                yield place, min(place + grain, stop)

    def visit(self, block: Block, scratch: _Counts) -> None:
        for index, (score, rows) in enumerate(zip(self.scores, self.rows, strict=True)):
            if all(row.stage == "done" for row in rows):
                continue
            pair = score.rows(block)
            if self.asked[index].size:
                self._count_values(index, pair, block, scratch)
            for rank, row in enumerate(rows):
                if row.stage == "bracket":
                    self._count_bins((index, rank), row, pair, block, scratch)
                elif row.stage == "edge":
                    self._pinpoint((index, rank), row, pair, block, scratch)

    def _count_values(self, index: int, pair: tuple[Array, Array], block: Block, scratch: _Counts) -> None:
        values = self.asked[index]
        equal = np.empty((block.grains, len(values)), np.int32)
        above = scratch.above.setdefault(index, np.zeros(len(values), np.int64))
        block.reducers.count_values(*pair, values, self.target.grain, equal, above)
        scratch.equal.setdefault(index, []).append(equal)

    def _count_bins(
        self, key: tuple[int, int], row: _Row, pair: tuple[Array, Array], block: Block, scratch: _Counts
    ) -> None:
        from mergekit.kernels.arrays import fresh_bins

        if key not in scratch.bins:
            scratch.bins[key], scratch.beyond[key] = fresh_bins(), 0
        scratch.beyond[key] += block.reducers.sweep(*pair, row.low, row.high, row.shift, scratch.bins[key])

    def _pinpoint(
        self, key: tuple[int, int], row: _Row, pair: tuple[Array, Array], block: Block, scratch: _Counts
    ) -> None:
        grain = self.target.grain
        first = row.grain * grain - block.start
        if not 0 <= first < block.rows.shape[1]:
            return
        stop = min(first + grain, block.rows.shape[1])
        bits = np.empty(stop - first, np.uint32)
        block.reducers.magnitude_bits(pair[0][first:stop], pair[1][first:stop], bits)
        scratch.edges[key] = row.grain * grain + int(np.flatnonzero(bits == row.bits)[row.wanted - 1])

    def close(self, scratches: Sequence[_Counts]) -> None:
        for index, rows in enumerate(self.rows):
            for rank, row in enumerate(rows):
                if row.stage == "values":
                    self._weigh(index, row, scratches)
                elif row.stage == "bracket":
                    parts = [scratch for scratch in scratches if (index, rank) in scratch.bins]
                    beyond = sum(part.beyond[index, rank] for part in parts)
                    row.narrow(beyond, _merge_bins([part.bins[index, rank] for part in parts]), self.target.count)
                elif row.stage == "edge":
                    found = (part.edges[index, rank] for part in scratches if (index, rank) in part.edges)
                    row.finish(next(found))
        self._ask()

    def _weigh(self, index: int, row: _Row, scratches: Sequence[_Counts]) -> None:
        places = np.searchsorted(self.asked[index], row.values)
        above = np.sum([part.above[index] for part in scratches if index in part.above], axis=0)
        equal = np.concatenate([counts for part in scratches for counts in part.equal.get(index, [])])
        row.weigh(above[places], equal[:, places], self.target.count)

    def result(self) -> Cut:
        bits = [[row.bits for row in rows] for rows in self.rows]
        edges = [[row.edge for row in rows] for rows in self.rows]
        return Cut(np.array(bits, np.uint32).T.copy(), np.array(edges, np.int64).T.copy())


def _merge_bins(parts: Sequence[Numbers]) -> Numbers:
    counts = np.sum([part[0] for part in parts], axis=0, dtype=np.uint32)
    least = np.min([part[1] for part in parts], axis=0)
    greatest = np.max([part[2] for part in parts], axis=0)
    return np.stack([counts, least, greatest])


@final
@dataclass(frozen=True, slots=True)
class Kth(Reduction):
    """The scores that the k greatest entries reach, exactly, and where their ties end.

    Exactly k entries are kept, and among entries of equal score those of lowest index.

    Parameters:
        name: key in `stats`; the value is a :class:`Cut`.
        scores: what entries are ordered by, one search for each.
        ranks: from the number of entries and the stats so far, how many entries are kept: for each score one number
            or several, for all scores equally many.
        edges: whether it matters which of equal scores are kept; if not, the edges mean nothing.

    Passes: deltas of 16-bit weights take one sweep as a rule, and one stripe more for the last tie; others two.
    """

    name: str
    scores: tuple[Score, ...]
    ranks: Callable[[int, Stats], Sequence[Sequence[int]]]
    edges: bool = True

    def begin(self, target: Target, sample: Callable[[], Sequence[Block]], stats: Stats) -> Search:
        """Start on a tensor, guessing from a sample."""
        ranks = self.ranks(target.count, stats)
        searched = any(self._searched(keep, target.count) for own in ranks for keep in own)
        blocks = sample() if searched else ()
        rows = [self._rows(score, own, target.count, blocks) for score, own in zip(self.scores, ranks, strict=True)]
        return _KthSearch(target, self.scores, rows)

    def _searched(self, keep: int, entries: int) -> bool:
        """Whether there is anything to find out: not where all are kept, unless the least score itself is wanted."""
        return keep > 0 and (keep < entries or not self.edges)

    def _rows(self, score: Score, ranks: Sequence[int], entries: int, sample: Sequence[Block]) -> list[_Row]:
        bits = _score_bits(score, sample) if any(self._searched(keep, entries) for keep in ranks) else _NO_VALUES
        return [self._row(keep, entries, bits) for keep in ranks]

    def _row(self, keep: int, entries: int, sample: Numbers) -> _Row:
        if keep <= 0:
            return _Row(0, stage="done", bits=_NOTHING)
        if not self._searched(keep, entries):
            return _Row(entries, stage="done", bits=0, edge=entries)
        row = _Row(min(keep, entries), edges=self.edges)
        if sample.size == entries:
            row.settle(sample)
            return row
        row.low, row.high = _bracket(sample, row.keep / entries)
        values, counts = np.unique(sample[(sample >= row.low) & (sample <= row.high)], return_counts=True)
        likely = np.argsort(-counts, kind="stable")[:_FEW]
        covered = np.cumsum(counts[likely]) / counts.sum()
        if covered[-1] >= _LIKELY:  # deltas of 16-bit weights are few numbers, many times each
            row.guess(np.sort(values[likely[: 1 + np.count_nonzero(covered < _SURE)]]))
        return row


def _score_bits(score: Score, sample: Sequence[Block]) -> Numbers:
    parts = []
    for block in sample:
        parts.append(np.empty(block.rows.shape[1], np.uint32))
        block.reducers.magnitude_bits(*score.rows(block), parts[-1])
    return np.concatenate(parts)


def _bracket(bits: Numbers, share: float) -> tuple[int, int]:
    """Magnitudes that very likely enclose the one sought: three standard errors of a sample's rank, and some more."""
    error = 3 * math.sqrt(share * (1 - share) / bits.size) + 2 / bits.size
    places = [round((1 - share + sign * error) * bits.size) for sign in (-1, 1)]
    low, high = (min(max(place, 0), bits.size - 1) for place in places)
    ordered = np.partition(bits, (low, high))
    return (0 if places[0] < 0 else int(ordered[low])), (_TOP if places[1] >= bits.size else int(ordered[high]))
