"""One worker: its buffers, and what it does with a stretch of a tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import DType, Extent
from mergekit.checkpoint.reading import Buffer
from mergekit.engine.at_hand import AtHand, Measure, Reader, Writer
from mergekit.engine.compute import Compute, Loaded, Workbench
from mergekit.errors import BudgetError, IncompatibleModelsError
from mergekit.kernels import RAW
from mergekit.methods import Block, Search
from mergekit.methods.contract import Stats
from mergekit.plan import Memory, Operand, TensorTask
from mergekit.plan.views import StoredView, View

Raw = NDArray[Any]
_T = TypeVar("_T")

_AHEAD = 64 << 20  # bytes of each operand that are asked for ahead


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a tensor, in entries; it begins at a multiple of the tensor's grain."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Begun:
    """A stripe that is being merged: its first operand and its output on the host, once that was waited for."""

    stripe: Span
    reference: Raw
    out: Raw
    wait: Callable[[], None]


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
    _at_hand: AtHand | None = None
    _filled: dict[int, tuple[AtHand, Span]] = field(default_factory=dict)  # what rows hold, by their slot
    _bench: Workbench = field(init=False)
    _most: int = field(init=False)  # entries of a stripe: fewer than planned once a device was full

    def __post_init__(self) -> None:
        self._bench, self._most = self.compute.bench(), self.memory.stripe

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""
        self.files.read(extent, into)

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size."""
        self.files.gather(file, starts, places, nbytes, into)

    def buffer(self, use: str, nbytes: int) -> Raw:
        """Room for one use, kept between stripes: fresh memory would cost a page fault every 4 kB."""
        return self._room(use, nbytes, lambda count: np.empty(count, np.uint8))

    def _room(self, use: str, nbytes: int, make: Callable[[int], Raw]) -> Raw:
        held = self._buffers.get(use)
        if held is None or held.nbytes < nbytes:
            self._buffers[use] = held = make(nbytes)
        return held[:nbytes]

    def kept(self, view: View, make: Callable[[], _T]) -> _T:
        """What a view needs for every stripe, until the next tensor begins."""
        if view not in self._kept:
            self._kept[view] = make()
        found: _T = self._kept[view]
        return found

    def _of(self, task: TensorTask) -> AtHand:
        """What is known about a tensor."""
        if self._at_hand is None or self._at_hand.task is not task:
            self._at_hand = AtHand.of(task, self.files, self.writer)
        return self._at_hand

    def stripes(self, task: TensorTask, span: Span) -> list[Span]:
        """The span cut into stripes of whole grains."""
        grain = self._of(task).target.grain
        step = grain * max(1, self._most // grain)
        return [Span(start, min(start + step, span.stop)) for start in range(span.start, span.stop, step)]

    def prefetch(self, task: TensorTask, span: Span) -> None:
        """Have the system read a span, or its beginning, while this worker computes; from cold files that is faster.

        With this a tensor begins: what was kept of another one, or of the same one before, is dropped.
        """
        self._kept.clear()
        self._filled.clear()
        self._bench.forget()
        for operand in task.operands:
            ahead = span.start + _AHEAD * 8 // operand.view.spec.dtype.bits
            for extent in operand.view.extents(span.start, min(span.stop, ahead)):
                self.files.prefetch(extent)

    def sweep(self, task: TensorTask, span: Span, search: Search) -> Any:
        """Show the wanted stripes of a span to a search; returns what it noted."""
        bench, target = self._bench.for_sweeps(), self._of(task).target

        def swept() -> Any:
            scratch = search.scratch()
            wanted = self._wanted(task, span, search, bench)
            loaded = ((part, self._loaded(task, part, slot, bench)) for slot, part in wanted)
            for stripe, operands in _staggered(loaded, bench.depth):
                search.visit(bench.block(operands, task.based, stripe.start, target), scratch)
                bench.landed(operands)
            return scratch

        return self._fitting(task, swept)

    def _wanted(self, task: TensorTask, span: Span, search: Search, bench: Workbench) -> Iterator[tuple[int, Span]]:
        """What a sweep needs to see, with the number of its host buffers: small parts leave those of stripes alone."""
        stripes = self.stripes(task, span)
        parts = (Span(*ends) for stripe in stripes for ends in search.wanted(stripe.start, stripe.stop))
        whole = frozenset(stripes)
        for slot, part in _numbered(parts, bench):
            yield (slot if part in whole else slot + bench.depth), part

    def merge(self, task: TensorTask, span: Span, stats: Stats) -> Measure:
        """Merge a span and write it, its last stripe first: what a sweep has read last is still in the cache."""
        measures: list[Measure] = []
        rest = span

        def merged() -> Measure:
            nonlocal rest
            stripes = _numbered(reversed(self.stripes(task, rest)), self._bench)
            begun = (self._begun(task, stripe, slot, stats) for slot, stripe in stripes)
            for each in _staggered(begun, self._bench.depth):
                measures.append(self._finished(task, each))
                rest = Span(rest.start, each.stripe.start)
            return _joined(measures)

        return self._fitting(task, merged)

    def _fitting(self, task: TensorTask, work: Callable[[], _T]) -> _T:
        """Do something in shorter stripes, whenever the device has no memory for it."""
        while True:
            try:
                with self._bench.at_work():
                    return work()
            except Exception as error:
                if not self._bench.is_full(error):
                    raise
                self._shorten(task, error)
            self._bench.release()  # now that no error holds any of its memory

    def _shorten(self, task: TensorTask, error: Exception) -> None:
        grain = task.target.grain
        step = min(self._most, task.out.count)
        if step <= grain:
            raise BudgetError(
                f"`{task.out.name}` does not fit into the memory of the device, {step} entries of each model at a time",
                place=", ".join(self.compute.devices),
                hint="fewer threads (`-j 1`), or the CPU: no `--device`",
            ) from error
        self._most = max(grain, step // 2)

    def _loaded(self, task: TensorTask, stripe: Span, slot: int, bench: Workbench) -> Loaded:
        """The operands of a stripe for a sweep, where they are kept if there is room."""
        found = bench.kept(stripe.start, stripe.stop)
        if found is None:
            found = bench.load(self._read(task, stripe, slot))
            bench.keep(stripe.start, stripe.stop, found)
        return found

    def _begun(self, task: TensorTask, stripe: Span, slot: int, stats: Stats) -> _Begun:
        """Begin to merge a stripe."""
        bench = self._bench
        found = bench.kept(stripe.start, stripe.stop)
        if found is None:
            rows = self._read(task, stripe, slot)
            found, reference = bench.load(rows), rows[0]
        else:
            reference = self._rows(task, stripe, slot)[0]
            self._filled.pop(slot, None)
            bench.fetch(found, reference)
        out = self._out(task, stripe.stop - stripe.start, slot)
        block = bench.block(found, task.based, stripe.start, self._of(task).target)
        return _Begun(stripe, reference, out, bench.merge(task.method, block, stats, out))

    def _finished(self, task: TensorTask, begun: _Begun) -> Measure:
        """Wait for a stripe, and write it."""
        begun.wait()
        own, start = self._of(task), begun.stripe.start
        measure, written = own.hand_over(start, begun.out, begun.reference)
        if not written:
            measure = replace(measure, checksum=self._put(task, start, self._stored(task, begun.out)))
        before, after = (own.nbytes * entry // max(1, task.out.count) for entry in (start, begun.stripe.stop))
        self.advance(begun.out.size * task.out.dtype.bits // 8 + after - before)
        return measure

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
        return self._fitting(task, lambda: self._sampled(task, spans))

    def _sampled(self, task: TensorTask, spans: Sequence[Span]) -> list[Block]:
        bench = self._bench.for_sweeps()
        loaded = [(span, bench.load(self._read(task, span).copy())) for span in spans]
        blocks = [bench.block(operands, task.based, span.start, self._of(task).target) for span, operands in loaded]
        bench.settle()
        return blocks

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

    def _rows(self, task: TensorTask, stripe: Span, slot: int) -> Raw:
        """Room for all operands of a stripe, shape (k, n), in the task's row format."""
        entries = stripe.stop - stripe.start
        dtype = self._of(task).dtype
        room = self._room(f"rows {slot}", len(task.operands) * entries * dtype.itemsize, self._bench.room)
        return room.view(dtype).reshape(len(task.operands), entries)

    def _read(self, task: TensorTask, stripe: Span, slot: int = 0) -> Raw:
        rows, wanted = self._rows(task, stripe, slot), (self._of(task), stripe)
        if self._filled.get(slot) != wanted:  # a merge begins with the stripe that the last sweep ended with
            self._filled.pop(slot, None)
            wanted[0].read(self, stripe.start, stripe.stop, rows)
            self._filled[slot] = wanted
        return rows

    def _out(self, task: TensorTask, entries: int, slot: int) -> Raw:
        dtype = np.dtype(RAW.get(task.out.dtype.name, RAW["F32"]))
        return self._room(f"out {slot}", entries * dtype.itemsize, self._bench.room).view(dtype)

    def _measured(self, task: TensorTask, out: Raw, reference: Raw) -> tuple[Raw, int]:
        """Sums per grain, and how many entries are broken."""
        from mergekit.kernels.fused import measure

        grain = self._of(task).target.grain
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

    def _stored(self, task: TensorTask, out: Raw) -> Raw:
        """Merged entries as they are stored."""
        return out if task.out.dtype.name in RAW else out.astype(task.out.dtype.storage)

    def _put(self, task: TensorTask, start: int, entries: Raw) -> int:
        """Hand entries to the output, and return what they add to the checksum; they are in the cache still."""
        from mergekit.kernels.fused import checksum

        place = start * task.out.dtype.bits // 8
        self.writer.write(task.out.name, place, entries)
        return int(checksum(entries.view(np.uint8), place))


def _joined(measures: list[Measure]) -> Measure:
    sums = np.concatenate([np.zeros((0, 3)), *(part.sums for part in measures)])
    return Measure(sums, sum(part.broken for part in measures), sum(part.checksum for part in measures))


def _numbered(stripes: Iterable[Span], bench: Workbench) -> Iterator[tuple[int, Span]]:
    """Stripes with the number of their host buffers: as many in turn as are under way at a time."""
    return ((place % bench.depth, stripe) for place, stripe in enumerate(stripes))


def _staggered(items: Iterable[_T], depth: int) -> Iterator[_T]:
    """The same items, each handed on when as many are under way: begun, and not yet handled by who takes them."""
    begun: deque[_T] = deque()
    for item in items:
        begun.append(item)
        if len(begun) == depth:
            yield begun.popleft()
    yield from begun
