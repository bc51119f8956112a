"""The reductions that carry the methods: `Gram`, `Kth` and `Mass`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import BINS, GRAIN, grains
from mergekit.methods.contract import Block, Reduction, Search, Stats

Numbers = NDArray[Any]

_TOP = 0x7FFFFFFF  # greatest magnitude, as bits
_NOTHING = 0xFFFFFFFF  # a cut that no magnitude passes


def exact_sums(parts: Sequence[Numbers]) -> Numbers:
    """Sum grain sums over the grains, correctly rounded, whatever the order and the cuts.

    Parameters:
        parts: arrays of shape (grains, …), all of the same trailing shape.
    """
    stacked = np.concatenate(parts)
    flat = stacked.reshape(len(stacked), -1)
    return np.array([math.fsum(column) for column in flat.T]).reshape(stacked.shape[1:])


@final
@dataclass(slots=True)
class _GrainSums(Search):
    """One sweep that collects sums per grain."""

    kernel: Any
    shape: tuple[int, ...]
    total: Numbers | None = None
    done: bool = False

    def scratch(self) -> list[Numbers]:
        return []

    def visit(self, block: Block, scratch: list[Numbers]) -> None:
        sums = np.zeros((grains(block.rows.shape[1]), *self.shape))
        self.kernel(block, sums)
        scratch.append(sums)

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

    def begin(self, entries: int, sample: Block, stats: Stats) -> Search:
        """Start on a tensor."""
        del entries, stats
        if self.of == "rows":
            size = sample.rows.shape[0]
            return _GrainSums(lambda block, sums: block.reducers.gram(block.rows, sums), (size, size))
        size = sample.models.shape[0]
        return _GrainSums(lambda block, sums: block.reducers.gram_deltas(block.base, block.models, sums), (size, size))


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
    """The search for the cut of one delta: bracket, then ties, then the last tie that is kept."""

    keep: int
    low: int = 0
    high: int = _TOP
    stage: Literal["bracket", "ties", "edge", "done"] = "bracket"
    bits: int = 0
    edge: int = -1
    wanted: int = 0  # entries equal to the cut that are kept
    grain: int = -1  # grain of the last of them

    @property
    def shift(self) -> int:
        return max(0, (self.high - self.low).bit_length() - (BINS.bit_length() - 1))

    def settle(self, bits: int, wanted: int, equal: int, entries: int) -> None:
        """The cut is known; `wanted` of the `equal` entries that have exactly this magnitude are kept."""
        self.bits, self.wanted = bits, wanted
        if wanted == equal or bits == 0:  # a delta of 0 adds nothing, kept or not
            self.edge, self.stage = entries, "done"
        else:
            self.stage = "ties"

    def narrow(self, above: int, bins: Numbers, entries: int) -> None:
        """Take the counts of a sweep."""
        counts = bins[0].astype(np.int64)
        rank = self.keep - above
        if rank <= 0:
            self.low, self.high = self.high + 1, _TOP
            return
        from_top = np.cumsum(counts[::-1])
        if rank > from_top[-1]:
            self.low, self.high = 0, self.low - 1
            return
        place = BINS - 1 - int(np.searchsorted(from_top, rank))
        least, greatest = self.low + int(bins[1, place]), self.low + int(bins[2, place])
        if least == greatest:
            passed = int(from_top[BINS - 1 - place]) - int(counts[place])
            self.settle(least, rank - passed, int(counts[place]), entries)
        else:
            self.low, self.high = least, greatest

    def locate(self, counts: Numbers) -> None:
        """Take the counts of ties per grain."""
        passed = np.cumsum(counts)
        self.grain = int(np.searchsorted(passed, self.wanted))
        self.wanted -= int(passed[self.grain] - counts[self.grain])
        self.stage = "edge"

    def finish(self, edge: int) -> None:
        self.edge, self.stage = edge, "done"


@dataclass(slots=True)
class _Counts:
    """What one worker counts in one sweep, by row."""

    bins: dict[int, Numbers] = field(default_factory=dict)
    above: dict[int, int] = field(default_factory=dict)
    ties: dict[int, list[Numbers]] = field(default_factory=dict)
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
        open_rows = [row for row in self.rows if row.stage != "done"]
        return any(row.stage != "edge" or start <= row.grain * GRAIN < stop for row in open_rows)

    def visit(self, block: Block, scratch: _Counts) -> None:
        for index, row in enumerate(self.rows):
            if row.stage == "bracket":
                self._count(index, row, block, scratch)
            elif row.stage == "ties":
                counts = np.zeros(grains(block.rows.shape[1]), np.int64)
                block.reducers.count_equal(block.models[index], block.base, row.bits, counts)
                scratch.ties.setdefault(index, []).append(counts)
            elif row.stage == "edge":
                self._pinpoint(index, row, block, scratch)

    def _count(self, index: int, row: _Row, block: Block, scratch: _Counts) -> None:
        from mergekit.kernels.arrays import fresh_bins

        bins = scratch.bins.setdefault(index, fresh_bins())
        above = block.reducers.sweep(block.models[index], block.base, row.low, row.high, row.shift, bins)
        scratch.above[index] = scratch.above.get(index, 0) + above

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
            if row.stage == "bracket":
                row.narrow(
                    sum(scratch.above.get(index, 0) for scratch in scratches),
                    _merge_bins([scratch.bins[index] for scratch in scratches if index in scratch.bins]),
                    self.entries,
                )
            elif row.stage == "ties":
                row.locate(np.concatenate([part for scratch in scratches for part in scratch.ties.get(index, [])]))
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

    Passes: one sweep over the deltas as a rule; a second where magnitudes tie at the cut.
    """

    name: str
    keep: tuple[float, ...]

    def begin(self, entries: int, sample: Block, stats: Stats) -> Search:
        """Start on a tensor, guessing a bracket from the sample."""
        del stats
        rows = [self._row(index, density, entries, sample) for index, density in enumerate(self.keep)]
        return _KthSearch(entries, rows)

    def _row(self, index: int, density: float, entries: int, sample: Block) -> _Row:
        if density >= 1 or entries == 0:
            return _Row(entries, stage="done", bits=0, edge=entries)
        if density <= 0:
            return _Row(0, stage="done", bits=_NOTHING)
        row = _Row(max(1, int(density * entries)))
        bits = np.empty(sample.rows.shape[1], np.uint32)
        sample.reducers.magnitude_bits(sample.models[index], sample.base, bits)
        if bits.size == entries:
            _settle_at_once(row, bits)
        else:
            row.low, row.high = _bracket(bits, row.keep / entries)
        return row


def _settle_at_once(row: _Row, bits: Numbers) -> None:
    place = bits.size - row.keep
    cut = int(np.partition(bits, place)[place])
    ties = np.flatnonzero(bits == cut)
    row.settle(cut, row.keep - int((bits > cut).sum()), ties.size, bits.size)
    if row.stage == "ties":
        row.finish(int(ties[row.wanted - 1]))


def _bracket(bits: Numbers, share: float) -> tuple[int, int]:
    """Magnitudes that very likely enclose the one sought: three standard errors of a sample's rank, and some more."""
    error = 3 * math.sqrt(share * (1 - share) / bits.size) + 2 / bits.size
    places = [int((1 - share + sign * error) * bits.size) for sign in (-1, 1)]
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

    def begin(self, entries: int, sample: Block, stats: Stats) -> Search:
        """Start on a tensor."""
        del entries
        cut: Cut = stats[self.cut]

        def kernel(block: Block, sums: Numbers) -> None:
            for index in range(len(cut.bits)):
                edge = int(cut.edges[index]) - block.start
                row = np.empty((sums.shape[0], 2))
                block.reducers.masses(block.models[index], block.base, int(cut.bits[index]), edge, row)
                sums[:, index] = row

        return _GrainSums(kernel, (sample.models.shape[0], 2))
