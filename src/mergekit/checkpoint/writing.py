"""The output: shards planned from specs alone, then written anywhere in any order."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import final

from mergekit.checkpoint.header import header_bytes
from mergekit.checkpoint.reading import Buffer, octets
from mergekit.checkpoint.tensors import Extent, TensorSpec
from mergekit.errors import OutputError

_FLUSH_SECONDS = 0.05
_OTHER_FILES = 512  # inputs, and what Python holds open


@dataclass(frozen=True, slots=True)
class Shard:
    """A file to be written.

    Parameters:
        file: its name inside the output folder.
        head: its first bytes, up to the first tensor.
        specs: its tensors in the order of their bytes.
        starts: first byte of each tensor, counted from the beginning of the file.
        nbytes: size of the whole file in bytes.
    """

    file: str
    head: bytes
    specs: tuple[TensorSpec, ...]
    starts: Mapping[str, int]
    nbytes: int


def plan_shards(specs: Sequence[TensorSpec], limit: int, metadata: Mapping[str, str]) -> tuple[Shard, ...]:
    """Distribute tensors over files, in the order given.

    Inside a file the tensors with larger elements come first, so that each starts at a multiple of its element size.

    Parameters:
        specs: the tensors, each with its own name.
        limit: most bytes of tensors in one file; a larger tensor has a file of its own. 0: a single file.
        metadata: free text for the header of every file, ``{"format": "pt"}``.

    Raises:
        ValueError: two tensors share a name, or one is called ``__metadata__``, or the limit is negative.

    Example:
        >>> from mergekit.checkpoint.dtypes import DTYPES
        >>> specs = [TensorSpec(name, DTYPES["F32"], (2,)) for name in "abc"]
        >>> [shard.file for shard in plan_shards(specs, 16, {})]
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    if limit < 0:
        raise ValueError(f"a shard cannot be limited to {limit} bytes")
    if len({spec.name for spec in specs}) < len(specs):
        raise ValueError("two tensors share a name")
    groups = list(_groups(specs, limit))
    return tuple(
        _shard(_file_name(number, len(groups)), group, metadata) for number, group in enumerate(groups, start=1)
    )


def shard_index(shards: Sequence[Shard], extra_metadata: Mapping[str, object]) -> dict[str, object]:
    """Return the contents of ``model.safetensors.index.json``.

    Parameters:
        shards: all files of the checkpoint.
        extra_metadata: what to say beside ``total_size``, the bytes of all tensors.
    """
    total = sum(spec.nbytes for shard in shards for spec in shard.specs)
    weight_map = {spec.name: shard.file for shard in shards for spec in shard.specs}
    return {"metadata": {"total_size": total, **extra_metadata}, "weight_map": weight_map}


@final
class ShardWriter:
    """Writes tensors into shards that have their final names and sizes from the start.

    Space is reserved before the first write where the file system can do so. Files of the same name are overwritten in
    place: what was written to them by an interrupted run of the same plan is kept. As a context manager it finishes, or
    after an error just closes the files.

    Parameters:
        folder: existing folder for the shards.
        shards: all files, as :func:`plan_shards` returns them.

    Raises:
        OutputError: a file cannot be created, or there is no space for it.

    Example:
        >>> import tempfile
        >>> from mergekit.checkpoint.dtypes import DTYPES
        >>> from mergekit.checkpoint.header import read_header
        >>> shards = plan_shards([TensorSpec("norm.weight", DTYPES["BF16"], (4,))], 0, {"format": "pt"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ShardWriter(Path(folder), shards) as writer:
        ...         writer.write("norm.weight", 4, memoryview(b"wxyz"))
        ...     read_header(Path(folder, "model.safetensors")).tensors[0].spec.shape
        (4,)
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._descriptors: dict[Path, int] = {}
        self._flusher: Thread | None = None
        self._stop = Event()
        self.places = places_in(folder, shards)
        _allow_files(folder, len(shards))
        try:
            for shard in shards:
                self._create(folder / shard.file, shard)
        except BaseException:
            self.close()
            raise
        self._flusher = Thread(target=_flush, args=(tuple(self._descriptors.values()), self._stop), daemon=True)
        self._flusher.start()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.close()

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Write a part of a tensor; several threads may write at a time.

        Parameters:
            name: the tensor.
            offset: where the part begins, in bytes from the beginning of the tensor.
            data: C-contiguous little-endian bytes.

        Raises:
            OutputError: the file system refuses.
            ValueError: the part does not lie inside the tensor.
            KeyError: no shard has this tensor.
        """
        place = self.places[name]
        _write_into(self._descriptors[place.file], place, name, offset, data)

    def outlet(self, name: str) -> tuple[int, int]:
        """The descriptor of a tensor's file and the tensor's first byte, for writes at any place within it."""
        place = self.places[name]
        return self._descriptors[place.file], place.start

    def sync(self) -> None:
        """Wait until all bytes are on the disk.

        Raises:
            OutputError: the disk did not take them.
        """
        _sync(self._descriptors)

    def finish(self) -> None:
        """Wait until all bytes are on the disk, and close the files.

        Raises:
            OutputError: the disk did not take them.
        """
        self._stop_flushing()
        try:
            self.sync()
        finally:
            self.close()

    def close(self) -> None:
        """Close the files as they are."""
        self._stop_flushing()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _stop_flushing(self) -> None:
        if self._flusher is not None:
            self._stop.set()
            self._flusher.join()

    def _create(self, file: Path, shard: Shard) -> None:
        with reported(file, shard.nbytes):
            # Readable too: where the C library has to reserve by itself, it reads what is there.
            self._descriptors[file] = descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(descriptor, shard.nbytes)
            _reserve(descriptor, shard.nbytes)
            _write_at(descriptor, 0, shard.head)


@final
class RangeWriter:
    """Writes tensors into files that are there already, each at its place, and leaves all other bytes alone.

    Many processes, on many machines, may write the same files. So they are opened to be written to and not to be read:
    a network file system that knows a page may write back all of it, with what somebody else has written meanwhile.

    Parameters:
        places: where each tensor goes.
    """

    def __init__(self, places: Mapping[str, Extent]) -> None:
        self.places = places
        self._descriptors: dict[Path, int] = {}
        self._lock = Lock()

    def __enter__(self) -> RangeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Write a part of a tensor; several threads may write at a time.

        Parameters:
            name: the tensor.
            offset: where the part begins, in bytes from the beginning of the tensor.
            data: C-contiguous little-endian bytes.

        Raises:
            OutputError: the file is not there, or the file system refuses.
            ValueError: the part does not lie inside the tensor.
            KeyError: the tensor has no place.
        """
        _write_into(self.outlet(name)[0], self.places[name], name, offset, data)

    def outlet(self, name: str) -> tuple[int, int]:
        """The descriptor of a tensor's file and the tensor's first byte, for writes at any place within it.

        Raises:
            OutputError: the file is not there, or the file system refuses.
            KeyError: the tensor has no place.
        """
        place = self.places[name]
        with self._lock, reported(place.file, 0):
            if place.file not in self._descriptors:
                self._descriptors[place.file] = os.open(place.file, os.O_WRONLY)
        return self._descriptors[place.file], place.start

    def sync(self) -> None:
        """Wait until all bytes are where a machine that fails cannot lose them.

        Raises:
            OutputError: the disk did not take them.
        """
        _sync(self._descriptors)


def places_in(folder: Path, shards: Sequence[Shard]) -> dict[str, Extent]:
    """Where the tensors of an output go.

    Parameters:
        folder: the folder of the shards.
        shards: all files.
    """
    return {
        spec.name: Extent(folder / shard.file, shard.starts[spec.name], shard.starts[spec.name] + spec.nbytes)
        for shard in shards
        for spec in shard.specs
    }


def _write_into(descriptor: int, place: Extent, name: str, offset: int, data: Buffer) -> None:
    if not 0 <= offset <= offset + data.nbytes <= place.nbytes:
        stop = offset + data.nbytes
        raise ValueError(f"bytes {offset} to {stop} are outside of {name!r} with {place.nbytes} bytes")
    with reported(place.file, data.nbytes):
        _write_at(descriptor, place.start + offset, data)


def _sync(descriptors: Mapping[Path, int]) -> None:
    for file, descriptor in descriptors.items():
        with reported(file, os.fstat(descriptor).st_size):
            os.fsync(descriptor)


def _allow_files(folder: Path, count: int) -> None:
    """Let this process hold so many more files open, as far as the system allows."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft != resource.RLIM_INFINITY and soft < wanted:
        what = f"{count} shards are more files than the system lets a process open ({hard})"
        raise OutputError(what, place=str(folder), hint="larger shards, `--out-shard-size`")


def _flush(descriptors: Sequence[int], stop: Event) -> None:
    """Send what was written to the disk while more is being computed, so that the end need not wait for all of it."""
    while not stop.wait(_FLUSH_SECONDS):
        for descriptor in descriptors:
            with suppress(OSError):  # the last flush, which is waited for, meets the same error and reports it
                getattr(os, "fdatasync", os.fsync)(descriptor)


def output_error(error: OSError, file: Path, nbytes: int) -> OutputError:
    """Say what it means that a file could not be written.

    Parameters:
        error: what the operating system said.
        file: the file.
        nbytes: how many bytes were to be written.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(file.parent).free
        what = f"no space for {nbytes} bytes: {free} bytes are free on this disk ({error.strerror})"
        return OutputError(what, place=str(file), hint="another disk, or making room on this one")
    if error.errno == errno.EFBIG:
        what = f"a file of {nbytes} bytes is larger than the system allows here"
        return OutputError(what, place=str(file), hint="smaller shards, or a higher limit (`ulimit -f`)")
    hint = "a folder that you may write to" if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else None
    return OutputError(f"cannot write {nbytes} bytes: {error.strerror}", place=str(file), hint=hint)


@contextmanager
def reported(file: Path, nbytes: int) -> Iterator[None]:
    """Turn what the operating system says about a file that is being written into an :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        raise output_error(error, file, nbytes) from error


def _groups(specs: Sequence[TensorSpec], limit: int) -> Iterator[list[TensorSpec]]:
    group: list[TensorSpec] = []
    size = 0
    for spec in specs:
        if group and 0 < limit < size + spec.nbytes:
            yield group
            group, size = [], 0
        group.append(spec)
        size += spec.nbytes
    yield group


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _shard(file: str, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> Shard:
    ordered = sorted(specs, key=lambda spec: -spec.dtype.bits)
    head, starts = header_bytes(ordered, metadata)
    return Shard(file, head, tuple(ordered), starts, len(head) + sum(spec.nbytes for spec in ordered))


def _reserve(descriptor: int, nbytes: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        # Not every file system can reserve; then a full disk is met when writing.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _write_at(descriptor: int, start: int, data: Buffer | bytes) -> None:
    rest = octets(data)
    while rest:
        count = os.pwrite(descriptor, rest, start)
        rest, start = rest[count:], start + count
