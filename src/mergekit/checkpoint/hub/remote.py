"""A file on the hub, read by byte ranges."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, final
from urllib.parse import urlsplit

from mergekit.checkpoint.header import Header, header_of
from mergekit.checkpoint.hub.client import library, persist, status_of
from mergekit.checkpoint.tensors import Extent
from mergekit.errors import CheckpointError

_TIMEOUT = 30.0  # seconds without a byte
_HEAD = 64 << 10  # bytes that the first read takes: most headers are shorter
_PARTIAL = 206
_EXPIRED = (401, 403, 404, 410)


@final
@dataclass(slots=True)
class Location:
    """Where the bytes of a file are served from: the hub sends large files' readers elsewhere, for about an hour.

    Parameters:
        url: the file on the hub, of a commit.
    """

    url: str
    _found: str | None = None
    _lock: Lock = field(default_factory=Lock)

    def __reduce__(self) -> tuple[type[Location], tuple[str]]:
        """Another process asks the hub itself."""
        return Location, (self.url,)

    def size(self) -> int:
        """Ask the hub for the size of the file in bytes, and keep where it is served from."""
        found = library().get_hf_file_metadata(self.url, timeout=_TIMEOUT)
        self._found = found.location
        if found.size is None:
            raise CheckpointError("the hub does not say how large the file is", place=self.url)
        return int(found.size)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), after several tries if need be.

        Raises:
            CheckpointError: the hub cannot be reached or does not give them.
        """
        try:
            return persist(lambda: self._read(start, stop))
        except CheckpointError:
            raise
        except Exception as error:
            status = status_of(error)
            reason = f"status {status}" if status else (str(error).splitlines() or [type(error).__name__])[0]
            what = f"bytes {start} to {stop} cannot be read from the hub: {reason}"
            raise CheckpointError(what, place=self.url, hint="the same again, or without `--stream`") from error

    def _read(self, start: int, stop: int) -> bytes:
        with self._lock:
            if self._found is None:
                self.size()
            address = self._found or self.url
        response = self._answer(address, start, stop)
        if address != self.url and response.status_code in _EXPIRED:
            with self._lock:
                self.size()
                address = self._found or self.url
            response = self._answer(address, start, stop)
        library().utils.hf_raise_for_status(response)
        if response.status_code != _PARTIAL:
            raise CheckpointError("the server does not give parts of files", place=self.url, hint="without `--stream`")
        content: bytes = response.content
        if len(content) != stop - start:
            raise ConnectionError(f"{len(content)} bytes came instead of {stop - start}")
        return content

    def _answer(self, address: str, start: int, stop: int) -> Any:
        # What serves large files has its own credentials in the address; the user's are for the hub alone.
        ours = urlsplit(address)[:2] == urlsplit(self.url)[:2]
        headers = library().utils.build_hf_headers() if ours else {}
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        return library().utils.get_session().get(address, headers=headers, timeout=_TIMEOUT)


@dataclass(frozen=True, slots=True)
class Remote:
    """A safetensors file on the hub.

    Parameters:
        location: where its bytes are.
        nbytes: its size.
        header_sha256: hash of its header, as :func:`mergekit.plan.fingerprint.header_hash` has it.
        edges: where its tensors begin, and where the last one ends, ascending.
    """

    location: Location
    nbytes: int
    header_sha256: str
    edges: tuple[int, ...]

    def block(self, file: Path, position: int, size: int) -> Extent:
        """The bytes around a position that are read at a time: of one tensor, and at most so many.

        Parameters:
            file: what extents call this file.
            position: a byte of a tensor.
            size: of a block in bytes; the last one of a tensor is shorter.
        """
        index = bisect_right(self.edges, position) - 1
        first, last = self.edges[index], self.edges[index + 1]
        start = first + (position - first) // size * size
        return Extent(file, start, min(start + size, last))

    def neighbour(self, block: Extent, size: int, step: int) -> Extent | None:
        """The block of the same tensor that is so many blocks after this one, or before it."""
        position = block.start + step * size
        index = bisect_right(self.edges, block.start) - 1
        inside = self.edges[index] <= position < self.edges[index + 1]
        return self.block(block.file, position, size) if inside else None


def open_remote(file: Path, url: str) -> tuple[Remote, Header]:
    """Read the header of a safetensors file on the hub.

    Parameters:
        file: what extents shall call it; it need not exist.
        url: the file, of a commit.

    Raises:
        HeaderError: the header contradicts the format, itself or the size of the file.
        CheckpointError: the hub cannot be reached.
    """
    location = Location(url)
    size = persist(location.size)
    head = location.read(0, min(_HEAD, size)) if size else b""

    def read(start: int, into: memoryview) -> int:
        nonlocal head
        stop = min(start + len(into), size)
        if stop > len(head):
            head += location.read(len(head), stop)
        part = head[start:stop]
        into[: len(part)] = part
        return len(part)

    header = header_of(file, size, read)
    edges = sorted({header.nbytes, size, *(stored.extent.start for stored in header.tensors)})
    digest = hashlib.sha256(head[8 : header.nbytes]).hexdigest()
    return Remote(location, size, digest, tuple(edges)), header
