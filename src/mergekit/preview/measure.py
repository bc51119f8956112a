"""How fast this machine reads, writes and merges: measured for a moment, on little data."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import DTYPES, Extent, Stored, TensorSpec
from mergekit.checkpoint.reading import Buffer, octets
from mergekit.engine import Compute, execute
from mergekit.errors import NonFiniteError
from mergekit.kernels import RAW
from mergekit.plan import Operand, Plan, TensorTask
from mergekit.plan.views import Pieces

_MOMENT = 0.25  # seconds for each measurement
_CHUNK = 4 << 20  # bytes that are read or written at a time
_PLACES = 16  # of a file, that are read
_ENTRIES, _LEAST = 1 << 22, 1 << 16  # of all operands that are merged for a measurement, and of each at least
_KINDS = 2  # of tasks that are measured; the others are taken to be as fast
_EACH = 2e-4  # seconds that every tensor takes beside its entries


def reading_rate(files: Iterable[Path]) -> float | None:
    """Bytes per second of reading files as they are, in the page cache or not; None if there is nothing to read.

    Parameters:
        files: parts of them are read.
    """
    count, began, buffer = 0, time.perf_counter(), bytearray(_CHUNK)
    for file in files:
        until, size = time.perf_counter() + _MOMENT, file.stat().st_size
        with file.open("rb", buffering=0) as stream:
            for place in range(_PLACES):
                stream.seek(max(0, size - _CHUNK) * place // _PLACES)
                count += stream.readinto(buffer) or 0
                if time.perf_counter() > until or size <= _CHUNK:
                    break
    return count / (time.perf_counter() - began) if count else None


def writing_rate(folder: Path) -> float | None:
    """Bytes per second of writing a file and waiting for the disk; None if it cannot be written.

    Parameters:
        folder: where the file is, which is gone afterwards.
    """
    chunk, count, began = os.urandom(_CHUNK), 0, time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            while count < _PLACES * _CHUNK and time.perf_counter() - began < _MOMENT:
                count += stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        return None
    return count / (time.perf_counter() - began)


def merging_seconds(plan: Plan, compute: Compute) -> float:
    """Seconds that all tasks of a plan would take if reading and writing took none.

    Tensors of made-up numbers are merged by the plan's own methods on as many threads, for the kinds of tasks that
    have most entries.

    Parameters:
        plan: the merge.
        compute: where the mathematics runs.

    Raises:
        MethodError: a method of somebody else's fails.
    """
    kinds: dict[_Kind, list[TensorTask]] = {}
    for task in plan.tasks:
        kinds.setdefault(_Kind.of(task), []).append(task)
    work = {kind: sum(task.out.count * len(task.operands) for task in tasks) for kind, tasks in kinds.items()}
    heaviest = sorted(work, key=lambda kind: -work[kind])
    rates = {kind: _rate(plan, max(kinds[kind], key=_size), compute) for kind in heaviest[:_KINDS]}
    usual = next(iter(rates.values()), 1.0)
    return sum(amount / rates.get(kind, usual) for kind, amount in work.items()) + _EACH * len(plan.tasks)


def _size(task: TensorTask) -> int:
    return task.out.count


@dataclass(frozen=True, slots=True)
class _Kind:
    """Tasks that take as long as each other for an entry."""

    method: str
    inputs: int
    row_format: str
    written: str
    copied: bool

    @classmethod
    def of(cls, task: TensorTask) -> _Kind:
        copied = task.copied is not None
        return cls(task.method.name, len(task.operands), task.row_format, task.out.dtype.name, copied)


def _rate(plan: Plan, task: TensorTask, compute: Compute) -> float:
    """Entries of operands per second."""
    sample = _sample(task)
    numbers = _Numbers.alike(sample)
    tasks = [replace(sample, out=replace(sample.out, name=str(index))) for index in range(plan.memory.workers)]
    small = replace(plan, tasks=tuple(tasks))
    list(_run(small, numbers, compute))  # kernels are linked, or even compiled
    seconds, runs = 0.0, 0
    while seconds < _MOMENT:
        began = time.perf_counter()
        list(_run(small, numbers, compute))
        seconds, runs = seconds + time.perf_counter() - began, runs + 1
    return runs * len(tasks) * sample.out.count * len(sample.operands) / seconds


def _run(plan: Plan, numbers: _Numbers, compute: Compute) -> Iterator[object]:
    try:
        yield from execute(plan, numbers, _Nowhere(), compute, lambda _: None)
    except NonFiniteError:  # such numbers take as long
        return


def _sample(task: TensorTask) -> TensorTask:
    """The same task on tensors of as many columns, but fewer rows, that are stored as they are seen."""
    width = task.out.shape[-1] if task.out.shape else 1
    entries = max(_LEAST, _ENTRIES // len(task.operands))
    rows = max(1, min(task.out.count, entries) // max(1, width))
    shape = (rows, width) if len(task.out.shape) > 1 else (rows * width,)
    dtype = task.operands[0].view.spec.dtype if task.copied is not None else DTYPES[task.row_format]
    operands = []
    for index, operand in enumerate(task.operands):
        spec = TensorSpec(operand.view.spec.name, dtype, shape)
        operands.append(Operand(operand.model, Pieces.of(Stored(spec, Extent(Path(str(index)), 0, spec.nbytes)))))
    return replace(task, out=TensorSpec(task.out.name, task.out.dtype, shape), operands=tuple(operands))


@final
@dataclass(frozen=True, slots=True)
class _Numbers:
    """Tensors in memory, normally distributed around one of them, that are read like files."""

    contents: Sequence[NDArray[np.uint8]]

    @classmethod
    def alike(cls, task: TensorTask) -> _Numbers:
        """As many tensors as a task has operands, of their dtype and size; whole numbers are all the same."""
        draw, spec = np.random.default_rng(0), task.operands[0].view.spec
        first = draw.standard_normal(spec.count, np.float32) * np.float32(0.02)
        rows = [
            first,
            *(first + draw.standard_normal(spec.count, np.float32) * np.float32(0.002) for _ in task.operands[1:]),
        ]
        return cls([_stored(row, spec) for row in rows])

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""
        octets(into)[:] = self.contents[int(extent.file.name)][extent.start : extent.stop].data

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a tensor, all of one size."""
        for start, place in zip(starts, places, strict=True):
            self.read(Extent(file, start, start + nbytes), octets(into)[place : place + nbytes])

    def descriptor(self, file: Path) -> None:
        """None: it is no file."""

    def prefetch(self, extent: Extent) -> None:
        """Nothing: it is here."""


def _stored(row: NDArray[np.float32], spec: TensorSpec) -> NDArray[np.uint8]:
    if spec.dtype.name == "BF16":
        return np.ascontiguousarray(row.view(np.uint16)[1::2]).view(np.uint8)
    if spec.dtype.name in RAW:
        return row.astype(np.float16 if spec.dtype.name == "F16" else np.float32).view(np.uint8)
    return np.zeros(spec.nbytes, np.uint8)


@final
class _Nowhere:
    """Takes bytes, and drops them."""

    def outlet(self, name: str) -> None:
        """None: it is no file."""

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Nothing."""
