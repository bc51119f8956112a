"""Coefficients for every column of a tensor: sums over columns, in little memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.methods.contract import Block, Reduction, Search, Stats, Target

Numbers = NDArray[Any]

Weigh = Callable[[Numbers], Numbers]
"""Coefficients, shape (…, k), of vectors with these dot products, shape (…, k, k)."""

_FEWEST = 1 << 16  # entries that columns are summed over at once, at least


def column_grain(shape: tuple[int, ...]) -> int:
    """Grain of methods that look at columns: whole lines, of as many entries as a tensor has columns.

    Example:
        >>> column_grain((1000, 896)), column_grain((10, 100_000))
        (65408, 100000)
    """
    width = max(1, math.prod(shape[1:]))
    return width * max(1, _FEWEST // width)


@dataclass(frozen=True, slots=True)
class _Node:
    """Sums over the grains ``index · 2^level`` to ``(index + 1) · 2^level − 1``."""

    level: int
    index: int
    sums: Numbers

    def follows(self, left: _Node) -> bool:
        """Whether both are the halves of a greater node."""
        return self.level == left.level and self.index % 2 == 1 and self.index == left.index + 1


def _push(nodes: list[_Node], node: _Node) -> None:
    """Append the node of the next grains, and replace halves by their sum: the same sums whatever came in one go."""
    while nodes and node.follows(nodes[-1]):
        node = _Node(node.level + 1, node.index // 2, nodes.pop().sums + node.sums)
    nodes.append(node)


@final
@dataclass(slots=True)
class _ColumnSums(Search):
    """One sweep that adds up sums per grain along a fixed binary tree, so that few of them are held at a time."""

    target: Target
    weigh: Weigh
    nodes: list[_Node] = field(default_factory=list)
    done: bool = False

    @property
    def width(self) -> int:
        return math.prod(self.target.shape[1:])

    def scratch(self) -> list[_Node]:
        return []

    def visit(self, block: Block, scratch: list[_Node]) -> None:
        count = block.models.shape[0]
        sums = np.empty((block.grains, count * (count + 1) // 2, self.width))
        block.reducers.column_gram(block.origin, block.models, self.target.grain, sums)
        first = block.start // self.target.grain
        for index, part in enumerate(sums):
            _push(scratch, _Node(0, first + index, part.copy()))  # a view would keep all of them in memory

    def close(self, scratches: Sequence[list[_Node]]) -> None:
        for node in (node for scratch in scratches for node in scratch):
            _push(self.nodes, node)
        self.done = True

    def result(self) -> Numbers:
        if not self.nodes:
            return np.zeros((0, 0))
        total = self.nodes[-1].sums
        for node in reversed(self.nodes[:-1]):
            total = node.sums + total
        count = math.isqrt(2 * len(total))
        gram = np.empty((self.width, count, count))
        for sums, i, other in zip(total, *np.tril_indices(count), strict=True):
            gram[:, i, other] = gram[:, other, i] = sums
        return np.ascontiguousarray(self.weigh(gram).T)


@final
@dataclass(frozen=True, slots=True)
class ColumnWeights(Reduction):
    """Coefficients of the models for each column, shape (k, columns).

    Column j is the entries along the first dimension; there are as many as the other dimensions have entries.

    Parameters:
        name: key in `stats`.
        weigh: from the dot products of the columns of deltas, or of models if there is no base; done once.
    """

    name: str
    weigh: Weigh

    def begin(self, target: Target, sample: Callable[[], Sequence[Block]], stats: Stats) -> Search:
        """Start on a tensor."""
        del sample, stats
        return _ColumnSums(target, self.weigh, done=not target.count)
