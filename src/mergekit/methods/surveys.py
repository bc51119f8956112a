"""Reductions that look at all entries once, and order statistics that start from what was seen."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import GRAIN
from mergekit.methods.contract import Array, Block, Reduction, Search, Stats, Target
from mergekit.methods.reductions import Cut, GrainSums, Kth, Score, nth_greatest

Numbers = NDArray[Any]

_SAMPLE, _DISTANCE = 1 << 16, 1 << 10  # entries that a survey's sample holds at least, and their distance at most
_MOST = 0.03  # share of the entries that are collected from a bracket, rather than counted
_CROWDED = 4  # a block of which more than this fraction lies inside a bracket is too much
_TOP = 0xFFFFFFFF  # no bits are greater


@final
@dataclass(frozen=True, slots=True)
class Tally(Reduction):
    """The sum over a tensor of what a function finds in a block.

    Parameters:
        name: key in `stats`; the value is a float64 array without the axis of grains.
        sums: of a block and the stats so far: float64, shape (grains, …); of counts, which no cut changes, one for
            the block may do.
    """

    name: str
    sums: Callable[[Block, Stats], Numbers]

    def begin(self, target: Target, sample: Callable[[], Sequence[Block]], stats: Stats) -> Search:
        """Start on a tensor."""
        return GrainSums.start(lambda block: self.sums(block, stats), target, sample)


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """The result of a survey.

    Parameters:
        found: what was found in the tensor.
        sample: scores of entries at equal distances, from the first one on; float32.
    """

    found: Numbers
    sample: Numbers


Look = Callable[[Block, slice], tuple[Numbers, Numbers]]
"""From a block and some of its entries to what is found in it, and the scores of those entries."""


@final
@dataclass(slots=True)
class _SurveySearch(Search):
    """One sweep."""

    look: Look
    fold: Callable[[Sequence[Numbers]], Numbers]
    seen: Seen | None = None

    @property
    def done(self) -> bool:  # type: ignore[override]
        return self.seen is not None

    def scratch(self) -> list[tuple[Numbers, Numbers]]:
        return []

    def visit(self, block: Block, scratch: list[tuple[Numbers, Numbers]]) -> None:
        distance = max(1, min(block.target.count // _SAMPLE, _DISTANCE))
        scratch.append(self.look(block, slice(-block.start % distance, None, distance)))

    def close(self, scratches: Sequence[list[tuple[Numbers, Numbers]]]) -> None:
        found, samples = zip(*(part for scratch in scratches for part in scratch), strict=True)
        self.seen = Seen(self.fold(found), np.concatenate(samples))

    def result(self) -> Seen:
        assert self.seen is not None
        return self.seen


@final
@dataclass(frozen=True, slots=True)
class Survey(Reduction):
    """One sweep that finds something out and keeps a sample of scores.

    Parameters:
        name: key in `stats`; the value is :class:`Seen`.
        look: at a block.
        fold: from what was found in all blocks, in their order, to what is found in the tensor.
    """

    name: str
    look: Look
    fold: Callable[[Sequence[Numbers]], Numbers]

    def begin(self, target: Target, sample: Callable[[], Sequence[Block]], stats: Stats) -> Search:
        """Start on a tensor."""
        del stats
        search = _SurveySearch(self.look, self.fold)
        if not target.count:  # there is nothing to sweep
            blocks = search.scratch()
            for block in sample():
                search.visit(block, blocks)
            search.close([blocks])
        return search


class Surveyed(Score):
    """A score that is computed; a block without a base holds computed scores."""

    @abstractmethod
    def of(self, block: Block) -> Numbers:
        """The scores of the entries, float32, shape (n,)."""

    def rows(self, block: Block) -> tuple[Array, Array]:
        """The scores, and zeros."""
        scores = self.of(block) if block.based else block.rows[0]
        return scores, scores[:0]


@final
@dataclass(frozen=True, slots=True)
class _Collected:
    """What of a block lies inside a bracket.

    Parameters:
        above: how many entries are above it.
        bits: the scores of those inside, as far as there was room.
        places: if it matters, their indices.
        whole: whether there was room for all.
    """

    above: int
    bits: Numbers
    places: Numbers
    whole: bool


@final
@dataclass(frozen=True, slots=True)
class _Bracket:
    """Scores, as bits, that very likely enclose the one sought, which `keep` entries reach; `edges` as in `Kth`."""

    keep: int
    low: int
    high: int
    edges: bool

    def share(self, sample: Numbers) -> float:
        """Of the sample, what lies inside."""
        return np.count_nonzero((sample - np.uint32(self.low)) <= np.uint32(self.high - self.low)) / sample.size

    def inside(self, bits: Numbers, start: int) -> _Collected:
        """What of a block lies inside."""
        from mergekit.kernels.fused import collect

        room = bits.size // _CROWDED + GRAIN
        found, places, counts = np.empty(room, np.uint32), np.empty(room * self.edges, np.int64), np.empty(2, np.int64)
        collect(bits, self.low, self.high, start, found, places, counts)
        inside, above = counts.tolist()
        return _Collected(above, found[:inside].copy(), places[:inside].copy(), inside <= room)

    def cut(self, parts: Sequence[_Collected]) -> tuple[int, int] | None:
        """The score sought and the index of the last of its ties that is kept; None if it is not inside."""
        rank = self.keep - sum(part.above for part in parts)
        bits = np.concatenate([part.bits for part in parts])
        places = np.concatenate([part.places for part in parts])
        if not 0 < rank <= bits.size or not all(part.whole for part in parts):
            return None
        cut, last = nth_greatest(bits, rank)
        return cut, int(places[last]) if self.edges else -1


def _brackets(ranks: Sequence[int], entries: int, sample: Numbers, edges: bool) -> list[_Bracket]:
    """Four standard errors of the sample's rank to both sides, and some more; from the bits of a sample."""
    size = sample.size
    shares = [1 - keep / entries for keep in ranks]
    errors = [4 * math.sqrt(share * (1 - share) / size) + 2 / size for share in shares]
    ends = [
        [round((share + sign * error) * size) for sign in (-1, 1)] for share, error in zip(shares, errors, strict=True)
    ]
    places = [[min(max(place, 0), size - 1) for place in pair] for pair in ends]
    ordered = np.partition(sample, sorted({place for pair in places for place in pair}))
    return [
        _Bracket(keep, int(ordered[first]) if first > 0 else 0, int(ordered[last]) if last < size - 1 else _TOP, edges)
        for keep, (first, last) in zip(ranks, places, strict=True)
    ]


@final
@dataclass(slots=True)
class _BracketSearch(Search):
    """One sweep that collects what lies inside brackets, and more sweeps only if a bracket was wrong."""

    score: Surveyed
    brackets: Sequence[_Bracket]
    again: Callable[[], Search]
    cuts: Cut | None = None
    other: Search | None = None

    @property
    def done(self) -> bool:  # type: ignore[override]
        return self.cuts is not None or (self.other is not None and self.other.done)

    def wanted(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self.other.wanted(start, stop) if self.other else Search.wanted(self, start, stop)

    def scratch(self) -> Any:
        return self.other.scratch() if self.other else []

    def visit(self, block: Block, scratch: Any) -> None:
        if self.other:
            self.other.visit(block, scratch)
        else:
            bits = self.score.of(block).view(np.uint32)
            scratch.append([bracket.inside(bits, block.start) for bracket in self.brackets])

    def close(self, scratches: Sequence[Any]) -> None:
        if self.other:
            self.other.close(scratches)
            return
        found = zip(*(parts for scratch in scratches for parts in scratch), strict=True)
        cuts = [bracket.cut(parts) for bracket, parts in zip(self.brackets, found, strict=True)]
        settled = [cut for cut in cuts if cut]
        if len(settled) < len(cuts):
            self.other = self.again()
        else:
            bits, edges = zip(*settled, strict=True)
            self.cuts = Cut(np.array(bits, np.uint32)[:, None], np.array(edges, np.int64)[:, None])

    def result(self) -> Any:
        return self.cuts or (self.other and self.other.result())


def collected_bytes(shape: tuple[int, ...], ranks: int) -> int:
    """Most bytes that :class:`SurveyedKth` collects for a tensor: float32 scores, once found and once put together."""
    return int(_MOST * math.prod(shape)) * 8 * ranks


@final
@dataclass(frozen=True, slots=True)
class SurveyedKth(Reduction):
    """Order statistics of one score, from the sample of a survey.

    Parameters:
        name: key in `stats`; the value is a :class:`Cut`.
        survey: name of the :class:`Survey`.
        score: from the stats so far.
        ranks, edges: as in :class:`Kth`, of the one score.

    Passes: one, unless many scores are equal or the sample misleads: then as many as :class:`Kth` takes.
    """

    name: str
    survey: str
    score: Callable[[Stats], Surveyed]
    ranks: Callable[[int, Stats], Sequence[int]]
    edges: bool = True

    def begin(self, target: Target, sample: Callable[[], Sequence[Block]], stats: Stats) -> Search:
        """Start on a tensor."""
        from mergekit.kernels import arrays

        del sample
        drawn, score, ranks = stats[self.survey].sample, self.score(stats), self.ranks(target.count, stats)

        def counted() -> Search:
            seen = Block(drawn[None], False, 0, arrays, target)
            return Kth(self.name, (score,), lambda *_: (ranks,), self.edges).begin(target, lambda: (seen,), stats)

        if not all(0 < keep <= target.count for keep in ranks):
            return counted()
        bits = drawn.view(np.uint32)
        if drawn.size == target.count:
            return counted()
        brackets = _brackets(ranks, target.count, bits, self.edges)
        if max(bracket.share(bits) for bracket in brackets) > _MOST:
            return counted()
        return _BracketSearch(score, brackets, counted)
