"""The journal of a merge: which tensors are finished, so that a process that comes after can continue.

A journal is a file of lines, each a JSON object that ends with a check value of all before it. The first line says what
is being merged (:mod:`mergekit.engine.identity`); every other one tells of a finished tensor: its name, what was
measured, and the checksum of its bytes. Lines are appended with one call each and never changed. The first line that is
not whole ends the journal; what follows is not believed, and cut off before a line is added.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, final

from mergekit.checkpoint.writing import reported

Entry = Mapping[str, Any]
"""What a line says."""

_CHECK = "check"


def _checked(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def line_of(entry: Entry) -> bytes:
    r"""An entry as a line.

    Example:
        >>> line_of({"tensor": "norm.weight"})
        b'{"tensor": "norm.weight", "check": "e64b9909bd702b2f"}\n'
    """
    return json.dumps({**entry, _CHECK: _checked(json.dumps(entry))}).encode() + b"\n"


def entry_of(line: bytes) -> Entry | None:
    """What a line says; None if it is not whole."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not line.endswith(b"\n") or not isinstance(entry, dict):
        return None
    check = entry.pop(_CHECK, None)
    return entry if check == _checked(json.dumps(entry)) else None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a journal says.

    Parameters:
        merge: its first entry.
        tensors: the entries of finished tensors by name, of each the last one.
        nbytes: size of all whole lines.
    """

    merge: Entry
    tensors: Mapping[str, Entry]
    nbytes: int


def read_journal(file: Path) -> Recorded | None:
    """Read a journal as far as it is whole; None if there is none, or nothing of it."""
    entries: list[Entry] = []
    nbytes = 0
    with reported(file, 0):
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    for line in lines:
        entry = entry_of(line)
        if entry is None:
            break
        entries.append(entry)
        nbytes += len(line)
    return Recorded(entries[0], {str(entry.get("tensor")): entry for entry in entries[1:]}, nbytes) if entries else None


@final
class Journal:
    """A journal that is being written; a context.

    Parameters:
        file: the journal.
        merge: the first entry of a new journal; None to continue one.
        nbytes: where to continue, in bytes.
        count: tensors in what is before.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, file: Path, merge: Entry | None, nbytes: int = 0, count: int = 0) -> None:
        self.file = file
        self.count = count
        with reported(file, 0):
            self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._descriptor, nbytes)
        if merge is not None:
            self._append(merge)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def add(self, entry: Entry) -> None:
        """Note a finished tensor, all of whose bytes the operating system has.

        Raises:
            OutputError: the file system refuses.
        """
        self._append(entry)
        self.count += 1

    def _append(self, entry: Entry) -> None:
        rest = line_of(entry)
        with reported(self.file, len(rest)):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
