"""The folder of an adapter that is being made: tensors in any order first, since ranks are not known beforehand."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit import __version__
from mergekit.adapters import WEIGHTS
from mergekit.checkpoint import DTYPES, DType, Extent, Files, ShardWriter, Stored, TensorSpec, plan_shards
from mergekit.checkpoint.reading import octets
from mergekit.checkpoint.writing import reported
from mergekit.kernels import RAW

Array = NDArray[Any]

REPORT = "merge_report.json"
"""The file that says what is in an adapter and how much of the fine-tune that is."""

_CHUNK = 16 << 20  # bytes that are copied at a time


def rounded(array: Array, dtype: DType) -> Array:
    """Entries as they are stored, rounded to nearest even.

    Parameters:
        array: float32.
        dtype: float32, float16 or bfloat16.
    """
    if dtype.name == "F32":
        return np.ascontiguousarray(array, "<f4")
    from mergekit.kernels.fused import narrow

    out = np.empty(array.shape, RAW[dtype.name])
    narrow(np.ascontiguousarray(array, np.float32).reshape(-1), out.reshape(-1))
    return out


def widened(content: Array, stored: Stored) -> Array:
    """Stored entries as float32."""
    from mergekit.kernels.fused import widen

    out = np.empty(stored.spec.shape, np.float32)
    widen(content.view(RAW[stored.spec.dtype.name]), out.reshape(-1))
    return out


@final
class Spool:
    """A file that takes tensors as they come, from any thread, and is gone at the end; a context.

    Parameters:
        folder: where it is.
        dtype: of what is added as numbers.
    """

    def __init__(self, folder: Path, dtype: DType) -> None:
        self.dtype = dtype
        self._file = folder / ".tensors"
        self._end = 0
        self._lock = Lock()

    def __enter__(self) -> Spool:
        with reported(self._file, 0):
            self._stream = self._file.open("w+b", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._file.unlink(missing_ok=True)

    def add(self, name: str, array: Array, dtype: DType | None = None) -> Stored:
        """Take in float32 entries, rounded to a dtype; the spool's own if none is given."""
        stored = self.reserve(TensorSpec(name, dtype or self.dtype, array.shape))
        self.write(stored, 0, rounded(array, stored.spec.dtype))
        return stored

    def reserve(self, spec: TensorSpec) -> Stored:
        """Have room for a tensor, which is to be written piece by piece."""
        with self._lock:
            start, self._end = self._end, self._end + spec.nbytes
        return Stored(spec, Extent(self._file, start, start + spec.nbytes))

    def write(self, stored: Stored, offset: int, entries: Array) -> None:
        """Write entries as they are stored, from a byte of a tensor on."""
        data = octets(np.ascontiguousarray(entries))
        start = stored.extent.start + offset
        with reported(self._file, data.nbytes):
            while data:
                count = os.pwrite(self._stream.fileno(), data, start)
                data, start = data[count:], start + count

    def read(self, stored: Stored) -> Array:
        """A tensor as float32."""
        content = np.empty(stored.spec.nbytes, np.uint8)
        with Files() as files:
            files.read(stored.extent, content)
        return widened(content, stored)


def write_tensors(folder: Path, tensors: Sequence[Stored]) -> None:
    """Write the weight file of an adapter.

    Parameters:
        folder: where to.
        tensors: what is to be in it.

    Raises:
        OutputError: it cannot be written.
    """
    metadata = {"format": "pt", "mergekit_version": __version__}
    [plain] = plan_shards([stored.spec for stored in tensors], 0, metadata)
    shard = replace(plain, file=WEIGHTS)
    with Files() as files, ShardWriter(folder, [shard]) as writer:
        for stored in tensors:
            for start in range(stored.extent.start, stored.extent.stop, _CHUNK):
                extent = Extent(stored.extent.file, start, min(start + _CHUNK, stored.extent.stop))
                piece = np.empty(extent.nbytes, np.uint8)
                files.read(extent, piece)
                writer.write(stored.spec.name, start - stored.extent.start, piece)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write other files.

    Parameters:
        folder: where to.
        texts: their contents, by name.

    Raises:
        OutputError: they cannot be written.
    """
    for name, text in texts.items():
        with reported(folder / name, len(text.encode())):
            (folder / name).write_text(text, encoding="utf-8", newline="")


def written(record: Mapping[str, object]) -> str:
    """A record as JSON for people."""
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def stored_dtype(title: str) -> DType:
    """The dtype of factors with this name: float32, float16 or bfloat16."""
    return next(dtype for dtype in DTYPES.values() if dtype.title == title and dtype.name in RAW)
