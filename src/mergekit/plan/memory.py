"""How much memory a merge takes: integers, decided before it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mergekit.errors import BudgetError
from mergekit.kernels import GRAIN, grains

PROCESS = 300 << 20
"""Bytes that Python, NumPy and the compiled kernels take before the first buffer."""

_STRIPE = 384 << 10  # entries of one stripe; measured: 64 k cost calls, 1 M the caches
_WIDE = 4  # bytes of an entry while it is computed with


@dataclass(frozen=True, slots=True)
class Memory:
    """Workers and their buffers.

    Parameters:
        workers: threads that merge.
        stripe: entries of each operand that a worker holds at a time; whole grains.
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


def fit_memory(rows: int, workers: int | None = None, limit: int | None = None) -> Memory:
    """Choose buffers within a limit.

    Parameters:
        rows: most operands of a task.
        workers: threads, by default one per core.
        limit: bytes, by default a quarter of the machine's memory.

    Raises:
        BudgetError: even the smallest buffers do not fit; says what would.

    Example:
        >>> fit_memory(rows=4, workers=2, limit=1 << 30).workers
        2
    """
    limit = limit or physical_memory() // 4
    workers = workers or os.cpu_count() or 1
    smallest = PROCESS + _stripe_bytes(GRAIN, rows)
    if limit < smallest:
        megabytes = -(-smallest // 1_000_000)
        raise BudgetError(
            f"a merge of {rows} inputs does not fit into {limit / 1e6:.0f} MB",
            expected=f"at least {megabytes} MB",
            hint=f"`--max-memory {megabytes}MB`",
        )
    workers = max(1, min(workers, (limit - PROCESS) // _stripe_bytes(GRAIN, rows)))
    share = (limit - PROCESS) // workers
    stripe = GRAIN * max(1, min(grains(_STRIPE), share // _stripe_bytes(GRAIN, rows)))
    return Memory(workers, stripe, PROCESS + workers * _stripe_bytes(stripe, rows))
