"""Compare two model folders byte by byte, and say of what is not the same how it differs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Files, Stored, read_header
from mergekit.checkpoint.finding import SAFETENSORS
from mergekit.errors import CheckpointError, Problem
from mergekit.plan.tensors import MERGEABLE
from mergekit.plan.views import StoredView, view_of
from mergekit.report.rooms import Room

Raw = NDArray[Any]

_STRIPE = 1 << 20  # entries
_SHOWN = 20  # tensors that are told one by one


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two folders have in common.

    Parameters:
        tensors: how many were compared.
        files: names of the files that were compared.
        problems: what differs.
    """

    tensors: int
    files: tuple[str, ...]
    problems: tuple[Problem, ...]


def compare_bytes(expected: Path, folder: Path, leaving_out: frozenset[str]) -> Comparison:
    """Compare the files of a folder with those of the same names in another one, weights tensor by tensor.

    Parameters:
        expected: the folder whose files decide what is compared.
        folder: the other one; files of other names may be there, but no weights.
        leaving_out: names that are not compared.

    Raises:
        CheckpointError: `expected` cannot be read.
    """
    weights = sorted(file.name for file in expected.glob(f"*{SAFETENSORS.suffix}"))
    names = [file.relative_to(expected).as_posix() for file in sorted(expected.rglob("*")) if file.is_file()]
    others = [name for name in names if name not in weights and name not in leaving_out]
    stray = sorted({file.name for file in folder.glob(f"*{SAFETENSORS.suffix}")}.difference(weights))
    problems = [Problem(f"`{name}` is no file of this merge", str(folder)) for name in stray]
    for name in weights:
        problems += _unlike_shard(expected / name, folder / name)
    mine, own = _tensors(expected, weights), _tensors(folder, weights)
    problems += _unlike_tensors(mine, own, str(folder))
    problems += [problem for name in others for problem in _unlike_file(expected / name, folder / name)]
    return Comparison(len(mine), (*weights, *others), tuple(problems))


def _tensors(folder: Path, names: list[str]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for name in names:
        with suppress(CheckpointError):  # told already: the header is unlike
            found |= {stored.spec.name: stored for stored in read_header(folder / name).tensors}
    return found


def _unlike_shard(expected: Path, file: Path) -> Iterator[Problem]:
    """What is before the tensors of a file, compared."""
    if not file.is_file():
        yield Problem(f"`{file.name}` is not there", str(file.parent))
        return
    try:
        found, wanted = read_header(file), read_header(expected)
    except CheckpointError as error:
        yield error.problem
        return
    specs = [[stored.spec for stored in header.tensors] for header in (found, wanted)]
    if specs[0] != specs[1]:
        yield Problem("the file holds other tensors, or in another order", str(file), "those of the merge")
    elif _head(file, found.nbytes) != _head(expected, wanted.nbytes):
        yield Problem(f"the header of the file differs: {_metadata(found.metadata, wanted.metadata)}", str(file))


def _head(file: Path, nbytes: int) -> bytes:
    with file.open("rb") as stream:
        return stream.read(nbytes)


def _metadata(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    keys = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    told = [f"`{key}` is {found.get(key)!r}, not {wanted.get(key)!r}" for key in keys]
    return ", ".join(told) or "it is written in another style"


def _unlike_tensors(expected: Mapping[str, Stored], found: Mapping[str, Stored], place: str) -> Iterator[Problem]:
    for name in found.keys() - expected.keys():
        yield Problem(f"`{name}` is no tensor of this merge", place)
    with Files() as files, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        room = Room(files)

        def difference(numbered: tuple[int, str]) -> str:
            room.turn_to(numbered[0])
            return _difference(expected[numbered[1]], found.get(numbered[1]), room)

        told = list(zip(expected, pool.map(difference, enumerate(expected)), strict=True))
    unlike = [(name, how) for name, how in told if how]
    for name, how in unlike[:_SHOWN]:
        yield Problem(f"`{name}` {how}", place)
    if len(unlike) > _SHOWN:
        yield Problem(f"{len(unlike) - _SHOWN:,} more tensors differ, of {len(expected):,} in all", place)


def _difference(expected: Stored, found: Stored | None, room: Room) -> str:
    """How a tensor differs; empty if it does not."""
    if found is None:
        return "is not there"
    if (found.spec.dtype, found.spec.shape) != (expected.spec.dtype, expected.spec.shape):
        kinds = [f"{stored.spec.dtype.name} {list(stored.spec.shape)}" for stored in (found, expected)]
        return f"is {kinds[0]}, not {kinds[1]}"
    unlike, greatest, broken = 0, 0.0, False
    for start in range(0, expected.spec.count, _STRIPE):
        stop = min(start + _STRIPE, expected.spec.count)
        first, second = _octets(expected, room, "expected", start, stop), _octets(found, room, "found", start, stop)
        if np.array_equal(first, second):
            continue
        unlike += _count(expected, first, second)
        if expected.spec.dtype.name in MERGEABLE:
            apart = np.abs(np.subtract(*(_numbers(stored, room, start, stop) for stored in (expected, found))))
            broken |= not np.isfinite(apart).all()
            greatest = max(greatest, float(np.max(apart, initial=0.0, where=np.isfinite(apart))))
    if not unlike:
        return ""
    entries = f"differs in {unlike:,} of {expected.spec.count:,} entries"
    return entries + (f", by at most {greatest:.3g}" if greatest else "") + (" and NaN or infinity" if broken else "")


def _octets(stored: Stored, room: Room, use: str, start: int, stop: int) -> Raw:
    view = view_of(stored)
    assert isinstance(view, StoredView), "what a merge writes is stored as it is seen"
    octets = room.buffer(use, (stop - start) * stored.spec.dtype.bits // 8)
    view.read_bytes(room, start, stop, octets)
    return octets


def _count(stored: Stored, first: Raw, second: Raw) -> int:
    """Entries whose bytes are not the same; of entries smaller than a byte, bytes."""
    width = max(1, stored.spec.dtype.bits // 8)
    return int(np.count_nonzero((first != second).reshape(-1, width).any(axis=1)))


def _numbers(stored: Stored, room: Room, start: int, stop: int) -> Raw:
    row = np.empty(stop - start, np.float32)
    with np.errstate(over="ignore"):
        view_of(stored).read(room, start, stop, row)
    return row


def _unlike_file(expected: Path, file: Path) -> Iterator[Problem]:
    if not file.is_file():
        yield Problem(f"`{file.name}` is not there", str(file.parent))
    elif (found := file.read_bytes()) != (wanted := expected.read_bytes()):
        yield Problem(f"`{file.name}` differs: {_unlike_text(found, wanted)}", str(file))


def _unlike_text(found: bytes, wanted: bytes) -> str:
    with suppress(ValueError, RecursionError):
        first, second = json.loads(found), json.loads(wanted)
        if isinstance(first, dict) and isinstance(second, dict):
            keys = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
            return f"other values of {', '.join(f'`{key}`' for key in keys[:_SHOWN])}" if keys else "in spaces or order"
    lines = zip(found.splitlines(), wanted.splitlines(), strict=False)
    number = next((number for number, (one, other) in enumerate(lines, 1) if one != other), None)
    return f"first in line {number}" if number else f"{len(found):,} bytes, not {len(wanted):,}"
