"""Zip archives as places: where a member that is stored as it is lies in the file."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, final

from mergekit.checkpoint.finding import is_plain
from mergekit.checkpoint.tensors import Extent

if TYPE_CHECKING:
    from zipfile import ZipInfo

_LIMIT = 1 << 26
_LOCAL = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, and the lengths of the name and of what follows it
_ENCRYPTED, _UTF8 = 0x1, 0x800


@final
class Stream(io.FileIO):
    """A file from which nothing is read that does not fit into memory several times, whatever it claims."""

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, or fewer where the file ends.

        Raises:
            ValueError: more than 64 MiB are asked for.
        """
        if size is not None and size > _LIMIT:
            raise ValueError(f"a part of the file that is not a tensor claims {size} bytes, more than {_LIMIT}")
        rest = max(0, os.fstat(self.fileno()).st_size - self.tell())  # room for more would be taken and given back
        return super().read(min(rest, _LIMIT if size is None or size < 0 else size)) or b""

    def read_from(self, start: int, size: int) -> bytes:
        """Read from a place.

        Raises:
            ValueError: the file ends before, or more than 64 MiB are asked for.
        """
        self.seek(start)
        part = self.read(size)
        if len(part) < size:
            raise ValueError(f"the file is cut short: it ends at byte {start + len(part)}")
        return part


@final
class Archive:
    """The members of a zip archive.

    Parameters:
        file: its name.
        stream: the same, open.

    Raises:
        ValueError: it is not a zip archive, or has a member whose name leads out of it or is there twice.
    """

    def __init__(self, file: Path, stream: Stream) -> None:
        from zipfile import BadZipFile, ZipFile

        try:
            with ZipFile(stream) as opened:
                members, self._end = opened.infolist(), opened.start_dir
        except (BadZipFile, NotImplementedError, struct.error, ArithmeticError, EOFError) as cause:
            raise ValueError(f"the zip archive is damaged or cut short: {cause}") from cause
        self._file, self._stream = file, stream
        self._members = {member.orig_filename: member for member in members}
        _check_names([member.orig_filename for member in members])

    @property
    def names(self) -> list[str]:
        """The names of all members."""
        return list(self._members)

    def extents(self, names: Iterable[str]) -> dict[str, Extent]:
        """Where members are.

        Raises:
            ValueError: one of them is not there, is compressed or encrypted, or is not where the archive says; or two
                of them overlap.
        """
        found = {name: self._extent(name) for name in names}
        placed = sorted((extent.start, extent.stop, name) for name, extent in found.items() if extent.nbytes)
        for first, second in pairwise(placed):
            if second[0] < first[1]:
                raise ValueError(f"the members {first[2]!r} and {second[2]!r} of the archive overlap")
        return found

    def read(self, name: str) -> bytes:
        """The bytes of a small member."""
        extent = self.extents([name])[name]
        return self._stream.read_from(extent.start, extent.nbytes)

    def _extent(self, name: str) -> Extent:
        if name not in self._members:
            raise ValueError(f"the archive has no member {name!r}")
        member = self._members[name]
        start = member.header_offset + _LOCAL.size + self._checked_length(member)
        if not member.compress_size == member.file_size <= self._end - start:
            raise ValueError(f"the member {name!r} of the archive does not fit into the file")
        return Extent(self._file, start, start + member.file_size)

    def _checked_length(self, member: ZipInfo) -> int:
        """What stands between the fixed part of a member's own header and its contents, in bytes."""
        name = member.orig_filename
        if member.header_offset < 0:
            raise ValueError(f"the member {name!r} begins before the file does")
        signature, flags, method, *lengths = _LOCAL.unpack(self._stream.read_from(member.header_offset, _LOCAL.size))
        own = self._stream.read(lengths[0])
        if signature != b"PK\3\4" or own != name.encode("utf-8" if member.flag_bits & _UTF8 else "cp437"):
            raise ValueError(f"the member {name!r} is not where the archive says")
        if member.compress_type or method:
            raise ValueError(f"the member {name!r} is compressed; `torch.save` stores as it is")
        if (member.flag_bits | flags) & _ENCRYPTED:
            raise ValueError(f"the member {name!r} is encrypted")
        return sum(lengths)


def _check_names(names: list[str]) -> None:
    for name in names:
        if not is_plain(name):
            raise ValueError(f"the archive has a member {name!r}, whose name leads out of it")
    if len(set(names)) < len(names):
        twice = next(first for first, second in pairwise(sorted(names)) if first == second)
        raise ValueError(f"the archive has two members {twice!r}")
