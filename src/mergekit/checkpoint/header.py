"""The header of a safetensors file: read with distrust, written with care.

A file is ``length (8 bytes, little-endian) | header (JSON) | bytes of the tensors``. The tensors fill the rest of the
file without gaps and without overlap.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit.checkpoint.dtypes import DTYPES
from mergekit.checkpoint.reading import open_file, read_at
from mergekit.checkpoint.tensors import Extent, Stored, TensorSpec
from mergekit.errors import HeaderError

_PREFIX = 8
_LIMIT = 100_000_000  # of the safetensors library
_ELEMENTS = 2**63
_RANK = 32  # of NumPy 1
METADATA = "__metadata__"
"""The entry of a header that is no tensor."""
_KEYS = ("dtype", "shape", "data_offsets")


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says about itself.

    Parameters:
        tensors: its tensors, in the order of their bytes.
        metadata: free text of the writer.
        nbytes: size of everything before the first tensor, in bytes.
    """

    tensors: tuple[Stored, ...]
    metadata: Mapping[str, str]
    nbytes: int


def read_header(file: Path) -> Header:
    """Read and check the header of a safetensors file, and nothing behind it.

    Parameters:
        file: the file.

    Returns:
        Tensors whose extents cover the rest of the file without gaps and without overlap.

    Raises:
        HeaderError: the header contradicts the format, itself or the size of the file.
        CheckpointError: the file cannot be opened.
    """
    descriptor = open_file(file)
    try:
        size = os.fstat(descriptor).st_size
        return header_of(file, size, lambda start, into: read_at(descriptor, start, into))
    finally:
        os.close(descriptor)


def header_of(file: Path, size: int, read: Callable[[int, memoryview], int]) -> Header:
    """Read and check a header by positioned reads, wherever the file is.

    Parameters:
        file: what the tensors' extents call it.
        size: bytes of the whole file.
        read: fills a buffer from a place of the file and returns how many bytes there were.

    Raises:
        HeaderError: the header contradicts the format, itself or the size of the file.
    """
    try:
        return _parse(_text(size, read), file, size)
    except (ValueError, RecursionError, OSError) as cause:
        # A deep nest of brackets ends in a RecursionError, whose text would mean nothing here.
        what = "the header nests too deeply" if isinstance(cause, RecursionError) else str(cause)
        raise HeaderError(what, place=str(file), expected="a safetensors file") from cause


def header_bytes(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Encode the header of a file that holds tensors in the given order.

    Parameters:
        specs: the tensors, each with its own name.
        metadata: free text, ``{"format": "pt"}``.

    Returns:
        The first bytes of the file, a multiple of 8, and the first byte of each tensor, counted from the beginning of
        the file.

    Raises:
        ValueError: two tensors share a name, or one is called ``__metadata__``.

    Example:
        >>> head, starts = header_bytes([TensorSpec("a", DTYPES["F32"], (2,))], {})
        >>> head[8:]
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '
        >>> starts
        {'a': 64}
    """
    entries: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    offsets: dict[str, int] = {}
    end = 0
    for spec in specs:
        if spec.name in offsets or spec.name == METADATA:
            raise ValueError(f"a tensor cannot be called {_shown(spec.name)}: the name is taken")
        offsets[spec.name], end = end, end + spec.nbytes
        extent = [offsets[spec.name], end]
        entries[spec.name] = {"dtype": spec.dtype.name, "shape": list(spec.shape), "data_offsets": extent}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(_PREFIX, "little") + text
    return head, {name: len(head) + offset for name, offset in offsets.items()}


def _text(size: int, read: Callable[[int, memoryview], int]) -> bytes:
    """Return the JSON text of a header."""
    prefix = bytearray(_PREFIX)
    if read(0, memoryview(prefix)) < _PREFIX:
        raise ValueError(f"the file has {size} bytes, too few for a header")
    length = int.from_bytes(prefix, "little")
    if length > _LIMIT:
        raise ValueError(f"the header claims {length} bytes, more than the {_LIMIT} that are allowed")
    text = bytearray(min(length, size))
    if length > size - _PREFIX or read(_PREFIX, memoryview(text)) < length:
        raise ValueError(f"the file is cut short: it has {size} bytes, its header alone claims {length}")
    return bytes(text)


def _parse(text: bytes, file: Path, size: int) -> Header:
    if not text.startswith(b"{"):
        raise ValueError("the header does not begin with `{`")
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_unique, parse_int=_integer)
    except (json.JSONDecodeError, UnicodeError) as cause:
        raise ValueError(f"the header is not JSON: {cause}") from cause
    metadata = _checked_metadata(entries.pop(METADATA, {}))
    start = _PREFIX + len(text)
    tensors = [_stored(name, entry, file, start) for name, entry in entries.items()]
    tensors.sort(key=lambda stored: (stored.extent.start, stored.extent.stop))
    _check_cover(tensors, start, size)
    return Header(tuple(tensors), metadata, start)


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    items: dict[str, object] = {}
    for key, value in pairs:
        if key in items:
            raise ValueError(f"the header names {_shown(key)} twice")
        key.encode()  # half of a surrogate pair cannot be written again
        items[key] = value
    return items


def _integer(text: str) -> int | float:
    # No size has more than 20 digits, nor is it the negative zero that JSON knows and integers do not.
    return float(text) if len(text) > 20 or text == "-0" else int(text)


def _checked_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError(f"`{METADATA}` is not a map of strings")
    for text in metadata.values():
        text.encode()
    return metadata


def _stored(name: str, entry: Any, file: Path, start: int) -> Stored:
    if not isinstance(entry, dict) or sorted(entry) != sorted(_KEYS):
        raise ValueError(f"tensor {_shown(name)} does not have exactly the keys dtype, shape and data_offsets")
    dtype, shape, offsets = (entry[key] for key in _KEYS)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {_shown(name)} has the unknown dtype {_shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > _RANK or math.prod(max(length, 1) for length in shape) >= _ELEMENTS:
        raise ValueError(f"tensor {_shown(name)} has the impossible shape {_shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {_shown(name)} has the impossible data_offsets {_shown(offsets)}")
    stored = Stored(_spec(name, dtype, shape), Extent(file, start + offsets[0], start + offsets[1]))
    if stored.spec.nbytes != stored.extent.nbytes:
        raise ValueError(
            f"tensor {_shown(name)} has {stored.extent.nbytes} bytes, "
            f"{dtype} of shape {shape} needs {stored.spec.nbytes}"
        )
    return stored


def _shown(value: object, most: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _are_sizes(value: Any) -> bool:
    # `type` and not `isinstance`: true and false are no sizes.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _spec(name: str, dtype: str, shape: list[int]) -> TensorSpec:
    try:
        return TensorSpec(name, DTYPES[dtype], tuple(shape))
    except ValueError as cause:
        raise ValueError(f"tensor {_shown(name)}: {cause}") from None


def _check_cover(tensors: Iterable[Stored], start: int, size: int) -> None:
    end = start
    for stored in tensors:
        gap = stored.extent.start - end
        if gap < 0:
            raise ValueError(f"tensor {_shown(stored.spec.name)} overlaps the one before it by {-gap} bytes")
        if gap > 0:
            raise ValueError(f"there is a hole of {gap} bytes before tensor {_shown(stored.spec.name)}")
        end = stored.extent.stop
    if size < end:
        raise ValueError(f"the file is cut short: it has {size} bytes, its header promises {end}")
    if size > end:
        raise ValueError(f"the file has {size} bytes, {size - end} more than its header promises")
