"""Reads weights where they are: on the disk, or on the hub by byte ranges."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock, get_ident
from types import TracebackType
from typing import final

from mergekit.checkpoint.hub.remote import Remote
from mergekit.checkpoint.reading import Buffer, Files, octets
from mergekit.checkpoint.tensors import Extent

ROOM = 128 << 20
"""Bytes of weights from the hub that are held at a time."""

_LARGEST, _SMALLEST = 4 << 20, 64 << 10  # bytes of a block
_THREADS = 8  # connections
_AHEAD = 2  # blocks that are asked for before they are needed


@final
class RemoteFiles:
    """Reads extents of remote files in blocks, which it keeps as long as there is room, and the others as they are.

    The first and the last block of what is announced by :meth:`prefetch` are asked for at once; whoever goes through
    blocks in either direction finds the next ones there. Any number of threads may read.

    Parameters:
        local: reads what is not remote.
        remote: the remote files, by what extents call them.
        streams: how many places are read at a time: threads times operands.
    """

    def __init__(self, local: Files, remote: Mapping[Path, Remote], streams: int) -> None:
        self._local, self._remote = local, remote
        self._size = max(_SMALLEST, min(_LARGEST, ROOM // (max(1, streams) * (_AHEAD + 3))))
        self._blocks: OrderedDict[Extent, Future[bytes]] = OrderedDict()
        self._held = 0
        self._last: dict[tuple[int, Path], Extent] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(_THREADS)

    def __enter__(self) -> RemoteFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent.

        Raises:
            CheckpointError: the file cannot be read.
            ValueError: the buffer has another size than the extent.
        """
        remote = self._remote.get(extent.file)
        if remote is None:
            self._local.read(extent, into)
            return
        if into.nbytes != extent.nbytes:
            raise ValueError(f"a buffer of {into.nbytes} bytes cannot hold an extent of {extent.nbytes} bytes")
        rest, position = octets(into), extent.start
        while rest:
            block = remote.block(extent.file, position, self._size)
            future = self._ask(block)
            self._look_ahead(remote, block)
            first = position - block.start
            part = memoryview(self._result(block, future))[first : first + len(rest)]
            rest[: len(part)] = part
            rest, position = rest[len(part) :], position + len(part)

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size: see :meth:`Files.gather`."""
        if file not in self._remote:
            self._local.gather(file, starts, places, nbytes, into)
            return
        room = octets(into)
        for start, place in zip(starts, places, strict=True):
            self.read(Extent(file, start, start + nbytes), room[place : place + nbytes])

    def descriptor(self, file: Path) -> int | None:
        """The descriptor of a file on the disk; None for one that is not."""
        return None if file in self._remote else self._local.descriptor(file)

    def prefetch(self, extent: Extent) -> None:
        """Ask for the first and the last block of an extent, where merges begin."""
        remote = self._remote.get(extent.file)
        if remote is None:
            self._local.prefetch(extent)
        elif extent.nbytes:
            for position in (extent.start, extent.stop - 1):
                self._ask(remote.block(extent.file, position, self._size))

    def _look_ahead(self, remote: Remote, block: Extent) -> None:
        key = (get_ident(), block.file)
        last = self._last.get(key)
        if block == last:
            return
        self._last[key] = block
        if last is None:
            return
        for step in range(1, _AHEAD + 1):
            if abs(block.start - last.start) == self._size:  # a neighbour: somebody walks
                after = remote.neighbour(block, self._size, step if block.start > last.start else -step)
                if after is not None:
                    self._ask(after)

    def _ask(self, block: Extent) -> Future[bytes]:
        with self._lock:
            future = self._blocks.get(block)
            if future is None:
                location = self._remote[block.file].location
                future = self._blocks[block] = self._pool.submit(location.read, block.start, block.stop)
                self._held += block.nbytes
                self._make_room()
            self._blocks.move_to_end(block)
            return future

    def _make_room(self) -> None:
        """Forget blocks that have come and were not read for longest."""
        for block in [block for block, future in self._blocks.items() if future.done()]:
            if self._held <= ROOM:
                return
            del self._blocks[block]
            self._held -= block.nbytes

    def _result(self, block: Extent, future: Future[bytes]) -> bytes:
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._blocks.pop(block, None) is not None:
                    self._held -= block.nbytes
            raise
