"""How much memory a merge takes: integers, decided before it starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit.errors import BudgetError
from mergekit.kernels import GRAIN, grains

if TYPE_CHECKING:
    from mergekit.plan.tasks import TensorTask
    from mergekit.plan.views.aligned import Aligned

PROCESS = 300 << 20
"""Bytes that Python, NumPy and the compiled kernels take before the first buffer, while kernels are being compiled."""

TORCH = 500 << 20
"""Bytes that torch takes."""

_STRIPE = 384 << 10  # entries of one stripe; measured: 64 k cost calls, 1 M the caches
_WIDE = 4  # bytes of an entry while it is computed with
_RECORD = 2048  # bytes of what is known about an operand or an output tensor, from headers to the report
_TOKEN = 1024  # bytes of what is known about a token of a model whose vocabulary is aligned


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


def _stripe_bytes(stripe: int, rows: int, scratch: int) -> int:
    """Raw and widened rows, output and its reference, and what a method takes beside that."""
    return stripe * (_WIDE * 2 * (rows + 2) + scratch)


def fit_memory(
    rows: int,
    workers: int | None = None,
    limit: int | None = None,
    grain: int = GRAIN,
    kept: int = 0,
    scratch: int = 0,
    room: int = 0,
) -> Memory:
    """Choose buffers within a limit.

    Parameters:
        rows: most operands of a task.
        workers: threads, by default one per core.
        limit: bytes, by default a quarter of the machine's memory.
        grain: most entries that must be in memory together.
        kept: most bytes that a worker holds beside its buffers.
        scratch: most bytes for each entry that a method takes beside its operands and its result.
        room: bytes that the process takes beside its workers.

    Raises:
        BudgetError: even the smallest buffers do not fit; says what would.

    Example:
        >>> fit_memory(rows=4, workers=2, limit=1 << 30).workers
        2
    """
    limit = limit or physical_memory() // 4
    workers = workers or os.cpu_count() or 1
    least, own = max(GRAIN, grain), PROCESS + room
    smallest = own + _stripe_bytes(least, rows, scratch) + kept
    if limit < smallest:
        megabytes = -(-smallest // 1_000_000)
        raise BudgetError(
            f"a merge of {rows} inputs, {least} entries of each at a time, does not fit into {limit / 1e6:.0f} MB",
            expected=f"at least {megabytes} MB",
            hint=f'`--max-memory {megabytes}MB`, or `max_memory="{megabytes}MB"` in Python',
        )
    workers = max(1, min(workers, (limit - own) // (_stripe_bytes(least, rows, scratch) + kept)))
    share = (limit - own) // workers - kept
    stripe = GRAIN * max(1, min(_STRIPE, share // _stripe_bytes(1, rows, scratch)) // GRAIN)
    return Memory(workers, stripe, own + workers * (_stripe_bytes(max(stripe, grain), rows, scratch) + kept))


def fit_tasks(
    tasks: Sequence[TensorTask], workers: int | None = None, limit: int | None = None, room: int = 0
) -> Memory:
    """Choose buffers for all tasks of a plan.

    Parameters:
        tasks: what is to be merged.
        workers: threads, by default one per core.
        limit: bytes, by default a quarter of the machine's memory.
        room: bytes that the process takes beside its workers, and beside what is known about the tasks.

    Raises:
        BudgetError: even the smallest buffers do not fit; says what would.
    """
    computed = [task for task in tasks if task.copied is None]
    return fit_memory(
        rows=max((len(task.operands) for task in tasks), default=1),
        workers=workers,
        limit=limit,
        grain=max((task.target.grain for task in computed), default=1),
        kept=max(map(_kept, tasks), default=0),
        scratch=max((task.method.scratch(len(task.operands)) for task in computed), default=0),
        room=room + _known(tasks),
    )


def _kept(task: TensorTask) -> int:
    """What a worker holds beside its buffers while it works on a tensor; for each grain there are sums and counts."""
    sums = grains(task.out.count) * (48 + 12 * len(task.operands))
    return sums + (0 if task.copied else task.kept_bytes + task.method.held(task.out.shape))


def _known(tasks: Sequence[TensorTask]) -> int:
    """What the plan itself takes: its tensors, the tables of tokens, and the library of methods that need one."""
    from mergekit.plan.views.aligned import Aligned

    records = sum(1 + len(task.operands) for task in tasks)
    operands = (operand for task in tasks for operand in task.operands)
    tokens = {each.model: _rows(each.view) for each in operands if isinstance(each.view, Aligned)}
    library = any(getattr(task.method, "arrays", "numpy") == "torch" for task in tasks)
    return _RECORD * records + _TOKEN * sum(tokens.values()) + TORCH * library


def _rows(view: Aligned) -> int:
    """Rows of the largest of the matrices that rows are taken from: about as many tokens as a model has."""
    width = max(1, view.spec.count // max(1, view.map.rows))
    return max(matrix.spec.count for matrix in view.matrices) // width
