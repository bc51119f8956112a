"""How much memory a merge takes: integers, decided before it starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mergekit.errors import BudgetError
from mergekit.kernels import GRAIN

if TYPE_CHECKING:
    from mergekit.plan.tasks import TensorTask

PROCESS = 300 << 20
"""Bytes that Python, NumPy and the compiled kernels take before the first buffer."""

_STRIPE = 384 << 10  # entries of one stripe; measured: 64 k cost calls, 1 M the caches
_WIDE = 4  # bytes of an entry while it is computed with


@dataclass(frozen=True, slots=True)
class Memory:
    """Workers and their buffers.

    Parameters:
        workers: threads that merge.
        stripe: entries of each operand that a worker holds at a time, at most; a tensor's own grain may be longer.
        peak: bytes that the process takes at most.
    """

    workers: int
    stripe: int
    peak: int


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _stripe_bytes(stripe: int, rows: int) -> int:
    """Raw and widened rows, output and its reference."""
    return stripe * _WIDE * 2 * (rows + 2)


def fit_memory(
    rows: int, workers: int | None = None, limit: int | None = None, grain: int = GRAIN, kept: int = 0
) -> Memory:
    """Choose buffers within a limit.

    Parameters:
        rows: most operands of a task.
        workers: threads, by default one per core.
        limit: bytes, by default a quarter of the machine's memory.
        grain: most entries that must be in memory together.
        kept: most bytes that a worker holds beside its buffers.

    Raises:
        BudgetError: even the smallest buffers do not fit; says what would.

    Example:
        >>> fit_memory(rows=4, workers=2, limit=1 << 30).workers
        2
    """
    limit = limit or physical_memory() // 4
    workers = workers or os.cpu_count() or 1
    least = max(GRAIN, grain)
    smallest = PROCESS + _stripe_bytes(least, rows) + kept
    if limit < smallest:
        megabytes = -(-smallest // 1_000_000)
        raise BudgetError(
            f"a merge of {rows} inputs, {least} entries of each at a time, does not fit into {limit / 1e6:.0f} MB",
            expected=f"at least {megabytes} MB",
            hint=f'`--max-memory {megabytes}MB`, or `max_memory="{megabytes}MB"` in Python',
        )
    workers = max(1, min(workers, (limit - PROCESS) // (_stripe_bytes(least, rows) + kept)))
    share = (limit - PROCESS) // workers - kept
    stripe = GRAIN * max(1, min(_STRIPE, share // _stripe_bytes(1, rows)) // GRAIN)
    return Memory(workers, stripe, PROCESS + workers * (_stripe_bytes(max(stripe, grain), rows) + kept))


def fit_tasks(
    tasks: Sequence[TensorTask], workers: int | None = None, limit: int | None = None, room: int = 0
) -> Memory:
    """Choose buffers for all tasks of a plan.

    Parameters:
        tasks: what is to be merged.
        workers: threads, by default one per core.
        limit: bytes, by default a quarter of the machine's memory.
        room: bytes that the process takes beside its workers.

    Raises:
        BudgetError: even the smallest buffers do not fit; says what would.
    """
    computed = [task for task in tasks if task.copied is None]
    rows = max((len(task.operands) for task in tasks), default=1)
    grain = max((task.target.grain for task in computed), default=1)
    kept = max((task.kept_bytes + task.method.held(task.out.shape) for task in computed), default=0)
    memory = fit_memory(rows, workers, (limit or physical_memory() // 4) - room, grain, kept)
    return replace(memory, peak=memory.peak + room)
