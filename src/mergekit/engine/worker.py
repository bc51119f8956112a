"""One worker: its buffers, and what it does with a stretch of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import DType, Extent
from mergekit.checkpoint.reading import Buffer
from mergekit.engine.compute import Compute
from mergekit.errors import IncompatibleModelsError
from mergekit.kernels import RAW
from mergekit.methods import Block, Search
from mergekit.methods.contract import Stats
from mergekit.plan import Memory, Operand, TensorTask
from mergekit.plan.views import StoredView, View

Raw = NDArray[Any]
_T = TypeVar("_T")

_AHEAD = 64 << 20  # bytes of each operand that are asked for ahead


class Reader(Protocol):
    """Where operands are read from: :class:`mergekit.checkpoint.Files`, or memory."""

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size."""

    def prefetch(self, extent: Extent) -> None:
        """Have an extent at hand soon."""


class Writer(Protocol):
    """Where the output goes: :class:`mergekit.checkpoint.ShardWriter`, or memory; several threads write at a time."""

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Take the bytes of a tensor from an offset on."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a tensor, in entries; it begins at a multiple of the tensor's grain."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Measure:
    """What is known about a stretch of output.

    Parameters:
        sums: per grain the squared norm of the output, of its distance to the first operand, and of that operand.
        broken: entries that are infinite or not a number.
        checksum: what the stretch adds to that of the tensor; see :mod:`mergekit.kernels.checksum`.
    """

    sums: Raw
    broken: int
    checksum: int


@final
@dataclass(slots=True)
class Worker:
    """Reads, reduces, merges and writes stripes in buffers of its own.

    Parameters:
        memory: sizes of the buffers.
        files: the inputs.
        writer: the output.
        compute: where the mathematics runs.
        advance: called with the bytes read and written whenever a stripe of output is done.
    """

    memory: Memory
    files: Reader
    writer: Writer
    compute: Compute
    advance: Callable[[int], None]
    _buffers: dict[str, Raw] = field(default_factory=dict)
    _kept: dict[View, Any] = field(default_factory=dict)

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""
        self.files.read(extent, into)

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size."""
        self.files.gather(file, starts, places, nbytes, into)

    def buffer(self, use: str, nbytes: int) -> Raw:
        """Room for one use, kept between stripes: fresh memory would cost a page fault every 4 kB."""
        held = self._buffers.get(use)
        if held is None or held.nbytes < nbytes:
            self._buffers[use] = held = np.empty(nbytes, np.uint8)
        return held[:nbytes]

    def kept(self, view: View, make: Callable[[], _T]) -> _T:
        """What a view needs for every stripe, until the next tensor begins."""
        if view not in self._kept:
            self._kept[view] = make()
        found: _T = self._kept[view]
        return found

    def stripes(self, task: TensorTask, span: Span) -> list[Span]:
        """The span cut into stripes of whole grains."""
        grain = task.target.grain
        step = grain * max(1, self.memory.stripe // grain)
        return [Span(start, min(start + step, span.stop)) for start in range(span.start, span.stop, step)]

    def prefetch(self, task: TensorTask, span: Span) -> None:
        """Have the system read a span, or its beginning, while this worker computes; from cold files that is faster.

        With this a tensor begins: what views had kept of another one is dropped.
        """
        self._kept.clear()
        for operand in task.operands:
            ahead = span.start + _AHEAD * 8 // operand.view.spec.dtype.bits
            for extent in operand.view.extents(span.start, min(span.stop, ahead)):
                self.files.prefetch(extent)

    def sweep(self, task: TensorTask, span: Span, search: Search) -> Any:
        """Show the wanted stripes of a span to a search; returns what it noted."""
        scratch = search.scratch()
        for stripe in self.stripes(task, span):
            if search.wants(stripe.start, stripe.stop):
                search.visit(self._block(task, stripe, self._read(task, stripe)), scratch)
        return scratch

    def merge(self, task: TensorTask, span: Span, stats: Stats) -> Measure:
        """Merge a span and write it, its last stripe first: what a sweep has read last is still in the cache."""
        measures = []
        for stripe in reversed(self.stripes(task, span)):
            rows = self._read(task, stripe)
            out = self._out(task, rows.shape[1])
            self.compute.merge(task.method, self._block(task, stripe, rows), stats, out)
            sums, broken = self._measured(task, out, rows[0])
            measures.append(Measure(sums, broken, self._write(task, stripe.start, out)))
        return _joined(measures)

    def copy(self, task: TensorTask, operand: Operand, span: Span) -> Measure:
        """Copy a span of one operand, bytes as they are; operands that must be identical are compared."""
        measures: list[Measure] = []
        dtype = operand.view.spec.dtype
        for stripe in self.stripes(task, span):
            bytes_read = self._bytes("copy", operand, stripe)
            if task.identical:
                self._compare(task, bytes_read, stripe)
            checksum = self._put(task, stripe.start, bytes_read)
            measures.append(Measure(*self._measured_copy(task, dtype, bytes_read), checksum))
            self.advance(bytes_read.nbytes * (len(task.operands) + 1))
        return _joined(measures)

    def sample(self, task: TensorTask, chunks: int) -> list[Block]:
        """Whole grains from all over a tensor, or everything if that is not more."""
        count, grain = task.out.count, task.target.grain
        last = count // grain - 1  # of the full grains
        if last < chunks:
            spans = [Span(0, count)]
        else:
            starts = [grain * (last * index // (chunks - 1)) for index in range(chunks)]
            spans = [Span(start, start + grain) for start in starts]
        return [self._block(task, span, self._read(task, span).copy()) for span in spans]

    def _block(self, task: TensorTask, stripe: Span, rows: Raw) -> Block:
        return self.compute.block(rows, task.based, stripe.start, task.target)

    def _bytes(self, use: str, operand: Operand, stripe: Span) -> Raw:
        view = operand.view
        if not isinstance(view, StoredView):
            raise TypeError(f"`{view.spec.name}` is computed and has no bytes to copy")
        room = self.buffer(use, (stripe.stop - stripe.start) * view.spec.dtype.bits // 8)
        view.read_bytes(self, stripe.start, stripe.stop, room)
        return room

    def _compare(self, task: TensorTask, expected: Raw, stripe: Span) -> None:
        operand = task.operands[0]
        for other in task.operands[1:]:
            if not np.array_equal(expected, self._bytes("other", other, stripe)):
                raise IncompatibleModelsError(
                    f"`{task.out.name}` holds {task.out.dtype.title} and differs between the models",
                    place=f"{operand.view.files[0]} and {other.view.files[0]}",
                    expected="the same values in all models: integers are copied, never averaged",
                )

    def _read(self, task: TensorTask, stripe: Span) -> Raw:
        """All operands of a stripe, shape (k, n), in the task's row format."""
        entries = stripe.stop - stripe.start
        dtype = np.dtype(RAW[task.row_format])
        room = self.buffer("rows", len(task.operands) * entries * dtype.itemsize)
        rows = room.view(dtype).reshape(len(task.operands), entries)
        for row, operand in zip(rows, task.operands, strict=True):
            operand.view.read(self, stripe.start, stripe.stop, row)
        return rows

    def _out(self, task: TensorTask, entries: int) -> Raw:
        dtype = np.dtype(RAW.get(task.out.dtype.name, RAW["F32"]))
        return self.buffer("out", entries * dtype.itemsize).view(dtype)

    def _measured(self, task: TensorTask, out: Raw, reference: Raw) -> tuple[Raw, int]:
        """Sums per grain, and how many entries are broken."""
        from mergekit.kernels.fused import measure

        grain = task.target.grain
        sums = np.empty((-(-out.size // grain), 3))
        return sums, measure(out, reference, grain, sums)

    def _measured_copy(self, task: TensorTask, dtype: DType, copied: Raw) -> tuple[Raw, int]:
        if dtype.name in RAW:
            entries = copied.view(RAW[dtype.name])
            return self._measured(task, entries, entries)
        if dtype.name != "F64":
            return np.zeros((0, 3)), 0
        with np.errstate(over="ignore"):
            narrow = copied.view(dtype.storage).astype(np.float32)
        sums, _ = self._measured(task, narrow, narrow)
        return sums, int(np.count_nonzero(~np.isfinite(copied.view(dtype.storage))))

    def _write(self, task: TensorTask, start: int, out: Raw) -> int:
        entries = out if task.out.dtype.name in RAW else out.astype(task.out.dtype.storage)
        checksum = self._put(task, start, entries)
        before, after = (task.read_bytes * entry // max(1, task.out.count) for entry in (start, start + out.size))
        self.advance(entries.nbytes + after - before)
        return checksum

    def _put(self, task: TensorTask, start: int, entries: Raw) -> int:
        """Hand entries to the output, and return what they add to the checksum; they are in the cache still."""
        from mergekit.kernels.fused import checksum

        place = start * task.out.dtype.bits // 8
        self.writer.write(task.out.name, place, entries)
        return int(checksum(entries.view(np.uint8), place))


def _joined(measures: list[Measure]) -> Measure:
    sums = np.concatenate([np.zeros((0, 3)), *(part.sums for part in measures)])
    return Measure(sums, sum(part.broken for part in measures), sum(part.checksum for part in measures))
