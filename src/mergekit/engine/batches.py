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
        >>> [batch.tasks for batch in batches([(0, 9), (1, 2), (2, 3), (3, 4)], workers=1, worth=6)]
        [(0,), (1, 2), (3,)]
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


def loads(sizes: Iterable[int], workers: int) -> list[int]:
    """What each worker has done when all is done, if each takes the next one when it is free.

    Parameters:
        sizes: of what is to be done, in the order in which it is taken.
        workers: how many share it.

    Example:
        >>> loads([9, 6, 4, 3], workers=2)
        [12, 10]
    """
    heap = [(0, worker) for worker in range(workers)]
    for size in sizes:
        least, worker = heap[0]
        heapq.heapreplace(heap, (least + size, worker))
    return sorted((total for total, _ in heap), reverse=True)
