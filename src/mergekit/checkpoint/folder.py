"""A model folder: config.json, and the weights in one file or in shards."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mergekit.checkpoint.header import read_header
from mergekit.checkpoint.tensors import Stored
from mergekit.errors import CheckpointError, MissingModelError, Place

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"model-(\d{5,})-of-(\d{5,})\.safetensors")
_PICKLED = "the safetensors of this model: `{}` is pickled, and pickled checkpoints are not read by this version"
_FOREIGN = (
    ("adapter_*", "BASE+ADAPTER as the model: `{}` is of an adapter"),
    ("*.gguf", "the safetensors of this model: `{}` is GGUF, which this version does not read"),
    ("*.bin", _PICKLED),
    ("*.pt*", _PICKLED),
    ("consolidated*", "the safetensors for transformers: `{}` has tensor names of its own"),
    ("*.safetensors", "`model.safetensors` as the name of `{}`, if that is the whole model"),
    ("*/config.json", "the folder of `{}`"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it lies on the disk.

    Parameters:
        root: its folder.
        tensors: its tensors by name: what they are and where their bytes are.
        config: the contents of config.json.
        shards: the files that hold the tensors.
        remarks: what was found and not used, one sentence each.
    """

    root: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, object]
    shards: tuple[Path, ...]
    remarks: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(stored.spec.nbytes for stored in self.tensors.values())


def open_checkpoint(root: Path) -> Checkpoint:
    """Read what a model folder holds: its config and the headers of its weights, no weight.

    An index whose shards are all there wins over a single file; whatever is not used is remarked on.

    Parameters:
        root: a local folder with config.json and safetensors weights.

    Raises:
        MissingModelError: there is no such folder.
        CheckpointError: the folder does not hold a complete model.
        HeaderError: a weight file lies about its contents.
    """
    try:
        return _opened(root)
    except OSError as error:
        place = str(error.filename or root)
        raise CheckpointError(f"the model cannot be read: {error.strerror}", place=place) from error


def _opened(root: Path) -> Checkpoint:
    if not root.is_dir():
        raise _missing(root)
    if not _is_there(root, _CONFIG):
        hint = None if _is_there(root, _SINGLE) or _is_there(root, _INDEX) else _remedy(root)
        raise CheckpointError(f"no {_CONFIG} in the folder", place=str(root), hint=hint)
    config = _read_object(root / _CONFIG)
    remarks: list[str] = []
    shards, weight_map = _find_shards(root, remarks)
    tensors = _read_tensors(root, shards, weight_map, remarks)
    return Checkpoint(root, tensors, config, tuple(root / shard for shard in shards), tuple(remarks))


def _missing(root: Path) -> MissingModelError:
    expected = f"a folder with {_CONFIG} and {_SINGLE}"
    if root.exists():
        hint = f"`{root.parent}`" if root.name.endswith(".safetensors") else None
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


def _remedy(root: Path) -> str | None:
    """Say what to do about what is in the folder instead of a model."""
    for pattern, hint in _FOREIGN:
        if found := sorted(root.glob(pattern)):
            return hint.format(found[0].relative_to(root))
    return None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except json.JSONDecodeError as error:
        what = f"{file.name} is not JSON: {error.msg} in column {error.colno}"
        raise CheckpointError(what, place=Place("", str(file), error.lineno)) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.name} is not JSON: {error}", place=str(file)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file.name} holds a {type(value).__name__}", place=str(file), expected="a JSON object")
    return value


def _find_shards(root: Path, remarks: list[str]) -> tuple[list[str], Mapping[str, str] | None]:
    """Return the names of the weight files, and the index if it decides which tensor is in which of them."""
    single = _is_there(root, _SINGLE)
    if _is_there(root, _INDEX):
        weight_map = _read_weight_map(root)
        shards = sorted(set(weight_map.values()))
        absent = [shard for shard in shards if not _is_there(root, shard)]
        if not absent:
            if single and _SINGLE not in shards:
                remarks.append(f"`{_SINGLE}` is not used: `{_INDEX}` names other files, and all of them are there")
            return shards, weight_map
        if not single:
            raise CheckpointError(f"missing shards: {_listed(absent)}", place=str(root), expected=f"all of `{_INDEX}`")
        remarks.append(f"`{_INDEX}` is not used: it names missing files ({_listed(absent)}), and `{_SINGLE}` is there")
    if single:
        return [_SINGLE], None
    return _numbered_shards(root, remarks), None


def _read_weight_map(root: Path) -> dict[str, str]:
    weight_map = _read_object(root / _INDEX).get("weight_map")
    place = Place("weight_map", str(root / _INDEX))
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index names no tensors", place=place, expected="tensor names and their files")
    # One tensor stands for all of its shard: there may be a hundred thousand of them.
    for shard, name in {shard if isinstance(shard, str) else "": name for name, shard in weight_map.items()}.items():
        if not _is_plain(shard):
            what = f"tensor {name!r} is in {weight_map[name]!r}"
            raise CheckpointError(what, place=place, expected="a file inside the folder")
    return weight_map


def _is_plain(name: str) -> bool:
    """Whether a name stays inside the folder it is relative to, on every system."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return bool(name) and name.isprintable() and not any(path.anchor or ".." in path.parts for path in paths)


def _numbered_shards(root: Path, remarks: list[str]) -> list[str]:
    """Return the one complete set `model-00001-of-0000N.safetensors` of a folder without index."""
    sets: dict[int, dict[int, str]] = {}
    for file in root.iterdir():
        if (match := _NUMBERED.fullmatch(file.name)) and _is_there(root, file.name):
            sets.setdefault(int(match[2]), {})[int(match[1])] = file.name
    complete = [shards for count, shards in sets.items() if len(shards) == count == max(shards) and 0 not in shards]
    if len(complete) == 1:
        remarks.append(f"there is no `{_INDEX}`: every shard was asked for its tensors")
        return [name for _, name in sorted(complete[0].items())]
    expected = f"`{_SINGLE}` or `{_INDEX}` and its shards"
    if sets:
        found = _listed(sorted(name for shards in sets.values() for name in shards.values()))
        what = f"there is no index, and the numbered shards are not one complete set: {found}"
        raise CheckpointError(what, place=str(root), expected=expected)
    raise CheckpointError("no weights in the folder", place=str(root), expected=expected, hint=_remedy(root))


def _is_there(root: Path, name: str) -> bool:
    """Whether a file exists; a link is followed inside the folder and into the blobs of the hub's cache.

    Raises:
        CheckpointError: the link leads elsewhere.
    """
    file = root / name
    if not file.is_file():
        return False
    home, target = root.resolve(), file.resolve()
    if not (target.is_relative_to(home) or target.is_relative_to(home.parent.parent / "blobs")):
        raise CheckpointError(
            f"`{name}` is a link to `{target}`, outside of the folder",
            place=str(root),
            hint="the folder that it leads to, or a copy",
        )
    return True


def _read_tensors(
    root: Path, shards: Sequence[str], weight_map: Mapping[str, str] | None, remarks: list[str]
) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    unnamed: list[str] = []
    for shard in shards:
        for stored in read_header(root / shard).tensors:
            name = stored.spec.name
            if weight_map is not None and weight_map.get(name) != shard:
                unnamed.append(name)
                continue
            if name in tensors:
                first = tensors[name].extent.file.name
                raise CheckpointError(f"tensor {name!r} is in two files: `{first}` and `{shard}`", place=str(root))
            tensors[name] = stored
    if absent := [name for name in weight_map or () if name not in tensors]:
        what = f"the shards lack tensors that the index promises: {_listed(absent)}"
        raise CheckpointError(what, place=str(root / _INDEX))
    if unnamed:
        remarks.append(f"not used, because `{_INDEX}` does not name them there: {_listed(unnamed)}")
    return tensors


def _listed(names: Iterable[str], most: int = 5) -> str:
    known = list(names)
    rest = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(f"`{name}`" for name in known[:most]) + rest
