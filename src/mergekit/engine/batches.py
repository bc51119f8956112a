"""Tasks by the batch: what one machine of many does at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

WORTH = 256 << 20
"""Bytes that a batch reads, about: some hundred times what it costs to have another machine do it."""

_EACH = 4  # batches for every worker at least, so that all are busy until the end


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks that are done one after the other by one process.

    Parameters:
        tasks: their indices in the plan, ascending: neighbours lie beside each other in the files.
        nbytes: what they read.
    """

    tasks: tuple[int, ...]
    nbytes: int


def batches(sizes: Iterable[tuple[int, int]], workers: int, worth: int = WORTH) -> list[Batch]:
    """Put tasks into batches, which are worth sending and can be spread evenly; the largest first.

    No batch is larger than it should be, but for single tasks that are.

    Parameters:
        sizes: index and bytes of each task, in the order of the plan.
        workers: how many processes will share them.
        worth: bytes of a batch if there is enough to do.

    Example:
        >>> sizes = [(0, 900), (1, 20), (2, 30), (3, 40), (4, 50)]
        >>> [batch.tasks for batch in batches(sizes, workers=1, worth=100)]
        [(0,), (1, 2, 3), (4,)]
    """
    tasks = list(sizes)
    limit = min(worth, sum(nbytes for _, nbytes in tasks) // (_EACH * max(1, workers)))
    return sorted(_neighbours(tasks, limit), key=lambda batch: -batch.nbytes)


def _neighbours(tasks: Sequence[tuple[int, int]], limit: int) -> Iterator[Batch]:
    group: list[int] = []
    total = 0
    for index, nbytes in tasks:
        if group and total + nbytes > limit:
            yield Batch(tuple(group), total)
            group, total = [], 0
        group.append(index)
        total += nbytes
    if group:
        yield Batch(tuple(group), total)


def dealt(waiting: Iterable[Batch], workers: int) -> list[list[Batch]]:
    """What each worker has done when all is done, if each takes the next batch when it is free; most bytes first.

    Parameters:
        waiting: the batches in the order in which they are taken.
        workers: how many share them.

    Example:
        >>> given = [Batch((0,), 9), Batch((1, 2), 6), Batch((3,), 4)]
        >>> [[batch.nbytes for batch in own] for own in dealt(given, workers=2)]
        [[6, 4], [9]]
    """
    found: list[list[Batch]] = [[] for _ in range(workers)]
    heap = [(0, worker) for worker in range(workers)]
    for batch in waiting:
        total, worker = heap[0]
        found[worker].append(batch)
        heapq.heapreplace(heap, (total + batch.nbytes, worker))
    return [found[worker] for _, worker in sorted(heap, key=lambda entry: -entry[0])]
