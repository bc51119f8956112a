"""The reductions that carry the methods: `Gram`, `Kth` and `Mass`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import BINS, GRAIN, grains
from mergekit.methods.contract import Block, Reduction, Search, Stats

Numbers = NDArray[Any]

_TOP = 0x7FFFFFFF  # greatest magnitude, as bits
_NOTHING = 0xFFFFFFFF  # a cut that no magnitude passes
_FEW = 3  # values that are cheaper to count one by one than to sort into bins


def exact_sums(parts: Sequence[Numbers]) -> Numbers:
    """Sum grain sums over the grains, correctly rounded, whatever the order and the cuts.

    Parameters:
        parts: arrays of shape (grains, …), all of the same trailing shape.
    """
    stacked = np.concatenate(parts)
    flat = stacked.reshape(len(stacked), math.prod(stacked.shape[1:]))
    return np.array([math.fsum(column) for column in flat.T]).reshape(stacked.shape[1:])


@final
@dataclass(slots=True)
class _GrainSums(Search):
    """One sweep that collects sums per grain."""

    sums: Callable[[Block], Numbers]
    total: Numbers | None = None
    done: bool = False

    @classmethod
    def start(cls, sums: Callable[[Block], Numbers], entries: int, sample: Callable[[], Block]) -> _GrainSums:
        """A search that is over already where there is nothing to sweep."""
        return cls(sums) if entries else cls(sums, exact_sums([sums(sample())]), done=True)

    def scratch(self) -> list[Numbers]:
        return []

    def visit(self, block: Block, scratch: list[Numbers]) -> None:
        scratch.append(self.sums(block))

    def close(self, scratches: Sequence[list[Numbers]]) -> None:
        self.total = exact_sums([part for scratch in scratches for part in scratch])
        self.done = True

    def result(self) -> Numbers:
        assert self.total is not None
        return self.total


@final
@dataclass(frozen=True, slots=True)
class Gram(Reduction):
    """All dot products of the rows, or of the deltas: ``G[i, j] = Σ_n r_i[n] · r_j[n]``, float64, shape (k, k).

    Parameters:
        name: key in `stats`.
        of: "rows" (the base first, if there is one) or "deltas".
    """

    name: str
    of: Literal["rows", "deltas"] = "rows"

    def begin(self, entries: int, sample: Callable[[], Block], stats: Stats) -> Search:
        """Start on a tensor."""
        del stats
        return _GrainSums.start(self._sums, entries, sample)

    def _sums(self, block: Block) -> Numbers:
        rows = block.rows if self.of == "rows" else block.models
        sums = np.empty((grains(rows.shape[1]), rows.shape[0], rows.shape[0]))
        if self.of == "rows":
            block.reducers.gram(rows, sums)
        else:
            block.reducers.gram_deltas(block.base, rows, sums)
        return sums


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """Which entries of each delta are kept: those above the cut, and those equal to it up to the edge.

    Parameters:
        bits: uint32, shape (k,): bits of the least magnitude kept.
        edges: int64, shape (k,): index of the last entry kept among those of exactly this magnitude.
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
        if all_ties or cut == 0:  # a delta of 0 adds nothing, kept or not
            self.finish(entries)
        return self.stage == "done"

    def finish(self, edge: int) -> None:
        self.edge, self.stage = edge, "done"


@dataclass(slots=True)
class _Counts:
    """What one worker counts in one sweep, by row."""

    equal: dict[int, list[Numbers]] = field(default_factory=dict)
    above: dict[int, Numbers] = field(default_factory=dict)
    bins: dict[int, Numbers] = field(default_factory=dict)
    edges: dict[int, int] = field(default_factory=dict)


@final
@dataclass(slots=True)
class _KthSearch(Search):
    entries: int
    rows: list[_Row]

    @property
    def done(self) -> bool:  # type: ignore[override]
        return all(row.stage == "done" for row in self.rows)

    def scratch(self) -> _Counts:
        return _Counts()

    def wants(self, start: int, stop: int) -> bool:
        unfinished = [row for row in self.rows if row.stage != "done"]
        return any(row.stage != "edge" or start <= row.grain * GRAIN < stop for row in unfinished)

    def visit(self, block: Block, scratch: _Counts) -> None:
        for index, row in enumerate(self.rows):
            if row.stage == "values":
                self._count_values(index, row, block, scratch)
            elif row.stage == "bracket":
                self._count_bins(index, row, block, scratch)
            elif row.stage == "edge":
                self._pinpoint(index, row, block, scratch)

    def _count_values(self, index: int, row: _Row, block: Block, scratch: _Counts) -> None:
        equal = np.empty((grains(block.rows.shape[1]), len(row.values)), np.int32)
        above = scratch.above.setdefault(index, np.zeros(len(row.values), np.int64))
        block.reducers.count_values(block.models[index], block.base, row.values, equal, above)
        scratch.equal.setdefault(index, []).append(equal)

    def _count_bins(self, index: int, row: _Row, block: Block, scratch: _Counts) -> None:
        from mergekit.kernels.arrays import fresh_bins

        if index not in scratch.bins:
            scratch.bins[index], scratch.above[index] = fresh_bins(), np.zeros(1, np.int64)
        models, bins = block.models[index], scratch.bins[index]
        scratch.above[index] += block.reducers.sweep(models, block.base, row.low, row.high, row.shift, bins)

    def _pinpoint(self, index: int, row: _Row, block: Block, scratch: _Counts) -> None:
        first = row.grain * GRAIN - block.start
        if not 0 <= first < block.rows.shape[1]:
            return
        stop = min(first + GRAIN, block.rows.shape[1])
        bits = np.empty(stop - first, np.uint32)
        block.reducers.magnitude_bits(block.models[index][first:stop], block.base[first:stop], bits)
        scratch.edges[index] = row.grain * GRAIN + int(np.flatnonzero(bits == row.bits)[row.wanted - 1])

    def close(self, scratches: Sequence[_Counts]) -> None:
        for index, row in enumerate(self.rows):
            above = sum(scratch.above.get(index, 0) for scratch in scratches)
            if row.stage == "values":
                equal = [part for scratch in scratches for part in scratch.equal.get(index, [])]
                row.weigh(np.asarray(above), np.concatenate(equal), self.entries)
            elif row.stage == "bracket":
                bins = [scratch.bins[index] for scratch in scratches if index in scratch.bins]
                row.narrow(int(np.sum(above)), _merge_bins(bins), self.entries)
            elif row.stage == "edge":
                row.finish(next(scratch.edges[index] for scratch in scratches if index in scratch.edges))

    def result(self) -> Cut:
        bits = np.array([row.bits for row in self.rows], np.uint32)
        return Cut(bits, np.array([row.edge for row in self.rows], np.int64))


def _merge_bins(parts: Sequence[Numbers]) -> Numbers:
    counts = np.sum([part[0] for part in parts], axis=0, dtype=np.uint32)
    least = np.min([part[1] for part in parts], axis=0)
    greatest = np.max([part[2] for part in parts], axis=0)
    return np.stack([counts, least, greatest])


@final
@dataclass(frozen=True, slots=True)
class Kth(Reduction):
    """The magnitude that the k greatest entries of each delta reach, exactly, and where its ties end.

    With n entries and density p, ``k = max(1, trunc(p · n))``; exactly k entries are kept, and among entries of equal
    magnitude those of lowest index. A density of 1 or more keeps all, of 0 or less none.

    Parameters:
        name: key in `stats`; the value is a :class:`Cut`.
        keep: densities, one for each model.

    Passes: deltas of 16-bit weights take one sweep as a rule, and one stripe more for the last tie; others two.
    """

    name: str
    keep: tuple[float, ...]

    def begin(self, entries: int, sample: Callable[[], Block], stats: Stats) -> Search:
        """Start on a tensor, guessing from a sample."""
        del stats
        trimmed = entries > 0 and any(0 < density < 1 for density in self.keep)
        block = sample() if trimmed else None
        return _KthSearch(
            entries, [self._row(index, density, entries, block) for index, density in enumerate(self.keep)]
        )

    def _row(self, index: int, density: float, entries: int, sample: Block | None) -> _Row:
        if density <= 0:
            return _Row(0, stage="done", bits=_NOTHING)
        if density >= 1 or sample is None:
            return _Row(entries, stage="done", bits=0, edge=entries)
        row = _Row(max(1, int(density * entries)))
        bits = np.empty(sample.rows.shape[1], np.uint32)
        sample.reducers.magnitude_bits(sample.models[index], sample.base, bits)
        row.low, row.high = _bracket(bits, row.keep / entries, bits.size == entries)
        values, counts = np.unique(bits[(bits >= row.low) & (bits <= row.high)], return_counts=True)
        likely = np.argsort(-counts, kind="stable")[:_FEW]
        if 2 * counts[likely].sum() >= counts.sum():  # deltas of 16-bit weights are few numbers, many times each
            row.guess(np.sort(values[likely]))
        return row


def _bracket(bits: Numbers, share: float, everything: bool) -> tuple[int, int]:
    """Magnitudes that very likely enclose the one sought: three standard errors of a sample's rank, and some more."""
    error = 0.0 if everything else 3 * math.sqrt(share * (1 - share) / bits.size) + 2 / bits.size
    places = [round((1 - share + sign * error) * bits.size) for sign in (-1, 1)]
    low, high = (min(max(place, 0), bits.size - 1) for place in places)
    ordered = np.partition(bits, (low, high))
    return (0 if places[0] < 0 else int(ordered[low])), (_TOP if places[1] >= bits.size else int(ordered[high]))


@final
@dataclass(frozen=True, slots=True)
class Mass(Reduction):
    """Sum of magnitudes of each delta, whole and trimmed: float64, shape (k, 2).

    Parameters:
        name: key in `stats`.
        cut: name of the :class:`Kth` reduction that trims.
    """

    name: str
    cut: str

    def begin(self, entries: int, sample: Callable[[], Block], stats: Stats) -> Search:
        """Start on a tensor."""
        cut: Cut = stats[self.cut]

        def sums(block: Block) -> Numbers:
            found = np.empty((len(cut.bits), grains(block.rows.shape[1]), 2))
            for index, part in enumerate(found):
                edge = int(cut.edges[index]) - block.start
                block.reducers.masses(block.models[index], block.base, int(cut.bits[index]), edge, part)
            return np.ascontiguousarray(found.swapaxes(0, 1))

        return _GrainSums.start(sums, entries, sample)
