"""Checkpoints that `torch.save` has written: tensors by name, and where their bytes lie, without running anything.

Since 1.6 a file is a zip archive of stored members: ``NAME/data.pkl``, a pickle in which each tensor refers to a
storage, and ``NAME/data/KEY``, the bytes of that storage. Before, and with ``_use_new_zipfile_serialization=False``, it
is five pickles — magic number, version, system, tensors, keys of the storages — and then each storage in the order of
the keys: number of entries (8 bytes) and bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit.checkpoint.archive import Archive, Stream
from mergekit.checkpoint.finding import listed
from mergekit.checkpoint.header import METADATA
from mergekit.checkpoint.tensors import Extent, Stored, TensorSpec, span_of
from mergekit.checkpoint.unpickling import Storage, Tensor, shown, unpickle
from mergekit.errors import CheckpointError, HeaderError

_PICKLE = "data.pkl"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_ZIP, _PICKLED = b"PK\3\4", b"\x80"  # how files of either kind begin
_COUNT = 8  # bytes of the number of entries that precedes a storage
_ENTRIES = 2**63


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a pickled checkpoint says about itself.

    Parameters:
        tensors: its tensors, in the order of the pickle; some may share bytes.
        remarks: what was found and is no tensor of the model, one sentence each.
        head: the pickle itself; it decides what the tensors are.
    """

    tensors: tuple[Stored, ...]
    remarks: tuple[str, ...]
    head: bytes


def open_pickle(file: Path) -> Pickled:
    """Read which tensors a file of `torch.save` holds and where they are, and nothing else.

    The state dict may stand in a mapping of its own, beside other values such as the optimizer's: under
    ``state_dict``, ``model_state_dict``, ``model`` or ``module``, or as the only mapping of tensors. Tensors that are
    transposed, expanded or cut out of others keep their strides. Nothing is imported, called or run, whatever the file
    asks for.

    Parameters:
        file: ``pytorch_model.bin``, ``*.pt`` or ``*.pth``, of any version of torch since 0.4.

    Raises:
        HeaderError: the file contradicts itself, or holds what is neither a tensor nor a plain value.
        CheckpointError: the file cannot be read.
    """
    try:
        with Stream(file) as stream:
            zipped = stream.read(len(_ZIP)) == _ZIP
            stream.seek(0)
            return (_zipped if zipped else _legacy)(file, stream)
    except ValueError as cause:
        expected = "tensors by name, as `torch.save(model.state_dict(), …)` writes them"
        raise HeaderError(str(cause), place=str(file), expected=expected) from cause
    except OSError as cause:
        raise CheckpointError(f"cannot read the file: {cause.strerror}", place=str(file)) from cause


def _zipped(file: Path, stream: Stream) -> Pickled:
    archive = Archive(file, stream)
    pickles = [name for name in archive.names if name.endswith(f"/{_PICKLE}") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError(f"the zip archive has {len(pickles) or 'no'} members `NAME/{_PICKLE}`")
    folder = pickles[0].removesuffix(_PICKLE)
    if f"{folder}byteorder" in archive.names and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("the file was not written on a little-endian machine")
    head = archive.read(pickles[0])
    tensors, remarks = _state_dict(unpickle(io.BytesIO(head)))
    members = {tensor.storage.key: f"{folder}data/{tensor.storage.key}" for tensor in tensors.values()}
    extents = archive.extents([*pickles, *members.values()])
    return _placed(tensors, {key: extents[member] for key, member in members.items()}, remarks, head)


def _legacy(file: Path, stream: Stream) -> Pickled:
    head = io.BytesIO(stream.read())
    if not head.getvalue().startswith(_PICKLED) or unpickle(head) != _MAGIC or unpickle(head) != _VERSION:
        raise ValueError("the file is neither a zip archive nor of the kind that older versions of `torch.save` wrote")
    system = unpickle(head)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("the file was not written on a little-endian machine")
    storages: dict[str, Storage] = {}
    tensors, remarks = _state_dict(unpickle(head, storages))
    keys = unpickle(head)
    if not isinstance(keys, list):
        raise ValueError("the file does not say in which order its storages are")
    extents = _in_turn(file, stream, head.tell(), keys, storages)
    return _placed(tensors, extents, remarks, head.getvalue()[: head.tell()])


def _in_turn(
    file: Path, stream: Stream, start: int, keys: Sequence[object], storages: Mapping[str, Storage]
) -> dict[str, Extent]:
    """Where storages are that follow each other, each preceded by its number of entries."""
    size = stream.seek(0, io.SEEK_END)
    extents: dict[str, Extent] = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or int.from_bytes(stream.read_from(start, _COUNT), "little") != storage.count:
            raise ValueError(f"the storage at byte {start} is not the one that the pickle describes")
        extents[storage.key] = extent = Extent(file, start + _COUNT, start + _COUNT + storage.nbytes)
        if extent.stop > size:
            raise ValueError(f"the file is cut short: it has {size} bytes, its pickle promises {extent.stop}")
        start = extent.stop
    return extents


def _state_dict(root: object) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a model, and remarks on what else there is."""
    if not isinstance(root, dict):
        raise ValueError(f"the pickle holds a {type(root).__name__.lower()} instead of a dict")
    remarks: list[str] = []
    mappings = {key: value for key, value in root.items() if isinstance(value, dict) and _named_tensors(value)}
    wrappers = [key for key in _WRAPPERS if key in mappings]
    if wrappers or not _named_tensors(root):
        wanted = wrappers[:1] or list(mappings)
        if len(wanted) != 1:
            found = f"tensors in several mappings, {listed(_names(wanted))}" if wanted else "no tensors by name"
            raise ValueError(f"the pickle holds {found}")
        rest = [key for key in root if key != wanted[0]]
        if rest:
            remarks.append(f"only {listed(_names(wanted))} is read, not {listed(_names(rest))} beside it")
        root = mappings[wanted[0]]
    tensors = _named_tensors(root)
    if rest := [key for key in root if key not in tensors]:
        remarks.append(f"not used, because they are no tensors: {listed(_names(rest))}")
    return tensors, remarks


def _named_tensors(mapping: Mapping[Any, object]) -> dict[str, Tensor]:
    return {key: value for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _names(keys: Iterable[object]) -> list[str]:
    return [shown(key) if isinstance(key, str) else "something without a name" for key in keys]


def _placed(
    tensors: Mapping[str, Tensor], extents: Mapping[str, Extent], remarks: Sequence[str], head: bytes
) -> Pickled:
    stored = tuple(_stored(name, tensor, extents.get(tensor.storage.key)) for name, tensor in tensors.items())
    return Pickled(stored, tuple(remarks), head)


def _stored(name: str, tensor: Tensor, storage: Extent | None) -> Stored:
    name.encode()  # half of a surrogate pair cannot be written again
    if name == METADATA:
        raise ValueError(f"a tensor is called `{METADATA}`, which safetensors files cannot hold")
    spec, size = TensorSpec(name, tensor.dtype, tensor.shape), tensor.dtype.bits // 8
    if math.prod(max(1, length) for length in tensor.shape) >= _ENTRIES:
        raise ValueError(f"tensor '{shown(name)}' has the impossible shape {list(tensor.shape)}")
    if storage is None or tensor.storage.nbytes > storage.nbytes:
        raise ValueError(f"the storage of tensor '{shown(name)}' is not all there")
    span = span_of(tensor.shape, tensor.strides)
    if (tensor.offset + span) * size > tensor.storage.nbytes:
        raise ValueError(f"tensor '{shown(name)}' does not lie inside its storage")
    start = storage.start + tensor.offset * size
    extent = Extent(storage.file, start, start + span * size)
    return Stored(spec, extent, strides=None if _is_row_major(tensor) else tensor.strides)


def _is_row_major(tensor: Tensor) -> bool:
    entries = 1
    for length, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if length > 1 and stride != entries:
            return 0 in tensor.shape
        entries *= length
    return True
