"""A model folder: config.json, and the weights in one file or in shards."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit.checkpoint.finding import (
    PICKLED,
    SAFETENSORS,
    Weights,
    find_gguf,
    find_weights,
    has_weights,
    is_there,
    listed,
    read_object,
    remedy,
)
from mergekit.checkpoint.header import read_header
from mergekit.checkpoint.pickled import open_pickle
from mergekit.checkpoint.tensors import Stored
from mergekit.errors import CheckpointError, MissingModelError

if TYPE_CHECKING:
    from mergekit.checkpoint.hub.remote import Remote

_CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it lies on the disk.

    Parameters:
        root: its folder, or the one GGUF file that it is.
        tensors: its tensors by name: what they are and where their bytes are.
        config: the contents of config.json.
        shards: the files that hold the tensors.
        remarks: what was found and not used, one sentence each.
        texts: makes the small files that are not in the folder, by name; they stand before those that are.
        remote: those of the shards that are not in the folder but on the hub.
    """

    root: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, object]
    shards: tuple[Path, ...]
    remarks: tuple[str, ...]
    texts: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    remote: Mapping[Path, Remote] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """Contents of a small file of the model, line ends as they are; None if there is no such file.

        Raises:
            CheckpointError: it is a link that leads out of the folder.
            UnicodeDecodeError: it is not UTF-8.
            OSError: it cannot be read.
        """
        if name in self.texts:
            return self.texts[name]()
        return (self.root / name).read_bytes().decode("utf-8") if is_there(self.root, name) else None

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(stored.spec.nbytes for stored in self.tensors.values())


def open_checkpoint(root: Path) -> Checkpoint:
    """Read what a model folder holds: its config and the headers of its weights, no weight.

    Safetensors win over pickles, and an index whose shards are all there over a single file; whatever else of the same
    format is not used is remarked on.

    Parameters:
        root: a local folder with config.json and weights, in safetensors or pickled (``pytorch_model.bin``);
            or a GGUF file, or a folder with one and no other weights.

    Raises:
        MissingModelError: there is no such folder.
        CheckpointError: the folder does not hold a complete model.
        HeaderError: a weight file lies about its contents, or holds something that is not weights.
    """
    try:
        return _opened(root)
    except OSError as error:
        place = str(error.filename or root)
        raise CheckpointError(f"the model cannot be read: {error.strerror}", place=place) from error


def _opened(root: Path) -> Checkpoint:
    if (file := find_gguf(root)) is not None:
        from mergekit.checkpoint.gguf.opening import open_gguf

        return open_gguf(file, root)
    if not root.is_dir():
        raise _missing(root)
    if not is_there(root, _CONFIG):
        hint = None if has_weights(root) else remedy(root)
        raise CheckpointError(f"no {_CONFIG} in the folder", place=str(root), hint=hint)
    config = read_object(root / _CONFIG)
    remarks: list[str] = []
    weights = find_weights(root, remarks)
    tensors = read_tensors(root, weights, remarks, _read_shard)
    return Checkpoint(root, tensors, config, tuple(root / shard for shard in weights.shards), tuple(remarks))


def _missing(root: Path) -> MissingModelError:
    expected = f"a folder with {_CONFIG} and {SAFETENSORS.single}"
    if root.exists():
        hint = f"`{root.parent}`" if root.suffix in (SAFETENSORS.suffix, PICKLED.suffix) else None
        return MissingModelError("the model is a file, not a folder", place=str(root), expected=expected, hint=hint)
    parent, wanted = root.parent, root.name
    while not parent.is_dir() and parent.name:
        parent, wanted = parent.parent, parent.name
    similar = difflib.get_close_matches(wanted, _folders(parent), 1)
    hint = f"`{parent / similar[0]}`" if similar else None
    return MissingModelError("there is no such folder", place=str(root), expected=expected, hint=hint)


def _folders(parent: Path) -> list[str]:
    try:
        return [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:
        return []


def read_tensors(
    root: Path, weights: Weights, remarks: list[str], read: Callable[[Path, Weights, list[str]], Sequence[Stored]]
) -> dict[str, Stored]:
    """Collect the tensors of all shards, each from the shard that the index names.

    Parameters:
        root: the folder.
        weights: the shards.
        remarks: is added to where something is there and not used.
        read: reads the header of one.

    Raises:
        CheckpointError: shards and index contradict each other.
    """
    tensors: dict[str, Stored] = {}
    unnamed: list[str] = []
    for shard in weights.shards:
        for stored in read(root / shard, weights, remarks):
            name = stored.spec.name
            if weights.places is not None and weights.places.get(name) != shard:
                unnamed.append(name)
                continue
            if name in tensors:
                first = tensors[name].extent.file.name
                raise CheckpointError(f"tensor {name!r} is in two files: `{first}` and `{shard}`", place=str(root))
            tensors[name] = stored
    if absent := [name for name in weights.places or () if name not in tensors]:
        what = f"the shards lack tensors that the index promises: {listed(absent)}"
        raise CheckpointError(what, place=str(root / weights.format.index))
    if unnamed:
        remarks.append(f"not used, because `{weights.format.index}` does not name them there: {listed(unnamed)}")
    return tensors


def _read_shard(file: Path, weights: Weights, remarks: list[str]) -> Sequence[Stored]:
    if weights.format is not PICKLED:
        return read_header(file).tensors
    pickled = open_pickle(file)
    remarks += [f"`{file.name}`: {remark}" for remark in pickled.remarks]
    return pickled.tensors
