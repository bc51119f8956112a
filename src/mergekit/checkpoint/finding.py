"""The files of a model folder that hold its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mergekit.errors import CheckpointError, Place

INDEX = ".index.json"
"""What the name of an index ends with."""


@dataclass(frozen=True, slots=True)
class Format:
    """How transformers names the weight files of one format.

    Parameters:
        stem: what their names begin with.
        suffix: what they end with.
    """

    stem: str
    suffix: str

    @property
    def single(self) -> str:
        """The file that holds everything."""
        return self.stem + self.suffix

    @property
    def index(self) -> str:
        """The file that says which tensor is in which shard."""
        return f"{self.single}{INDEX}"

    @property
    def numbered(self) -> re.Pattern[str]:
        """The name of a shard, with its number and that of all."""
        return re.compile(rf"{self.stem}-(\d{{5,}})-of-(\d{{5,}}){re.escape(self.suffix)}")


SAFETENSORS = Format("model", ".safetensors")
PICKLED = Format("pytorch_model", ".bin")
_FORMATS = (SAFETENSORS, PICKLED)
_GGUF, _PROJECTOR = ".gguf", "mmproj"  # llama.cpp keeps vision towers in files of their own

_RENAMED = "`{0}` as the name of `{{}}`, if that is the whole model"
_FOREIGN = (
    ("adapter_*", "BASE+ADAPTER as the model: `{}` is of an adapter"),
    ("*.gguf", "one of the GGUF files as the model, `{}`"),
    ("consolidated*", "the safetensors for transformers: `{}` has tensor names of its own"),
    ("*.bin", _RENAMED.format(PICKLED.single)),
    ("*.pt*", _RENAMED.format(PICKLED.single)),
    ("*.safetensors", _RENAMED.format(SAFETENSORS.single)),
    ("*/config.json", "the folder of `{}`"),
)


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files of a folder.

    Parameters:
        format: what they are.
        shards: their names.
        places: the shard of each tensor, if an index decides.
    """

    format: Format
    shards: tuple[str, ...]
    places: Mapping[str, str] | None


def find_weights(root: Path, remarks: list[str]) -> Weights:
    """Find the weight files of a model folder: safetensors before pickles, an index before a single file.

    Parameters:
        root: the folder.
        remarks: is added to where something is there and not used.

    Raises:
        CheckpointError: there are none, or not all of them.
    """
    for form in _FORMATS:
        if weights := _indexed(root, form, remarks) or _single(root, form) or _numbered(root, form, remarks):
            return weights
    expected = " or ".join(f"`{form.single}` or `{form.index}` and its shards" for form in _FORMATS)
    raise CheckpointError("no weights in the folder", place=str(root), expected=expected, hint=remedy(root))


def find_gguf(root: Path) -> Path | None:
    """The GGUF file that a path names, or the only one in a folder without other weights."""
    if not root.is_dir():
        return root if root.suffix == _GGUF and root.is_file() else None
    suffixes = (_GGUF, ".pt", ".pth", *(form.suffix for form in _FORMATS))
    names = [file.name for file in root.iterdir() if file.suffix in suffixes and not file.name.startswith(_PROJECTOR)]
    alone = len(names) == 1 and names[0].endswith(_GGUF) and is_there(root, names[0])
    return root / names[0] if alone else None


def has_weights(root: Path) -> bool:
    """Whether there is a weight file or an index in a folder."""
    return any(is_there(root, name) for form in _FORMATS for name in (form.single, form.index))


def remedy(root: Path) -> str | None:
    """Say what to do about what is in the folder instead of a model."""
    for pattern, hint in _FOREIGN:
        if found := sorted(root.glob(pattern)):
            return hint.format(found[0].relative_to(root))
    return None


def _indexed(root: Path, form: Format, remarks: list[str]) -> Weights | None:
    if not is_there(root, form.index):
        return None
    places = _read_places(root / form.index)
    shards = sorted(set(places.values()))
    absent = [shard for shard in shards if not is_there(root, shard)]
    single = is_there(root, form.single)
    if absent and not single:
        raise CheckpointError(f"missing shards: {listed(absent)}", place=str(root), expected=f"all of `{form.index}`")
    if absent:
        what = f"`{form.index}` is not used: it names missing files ({listed(absent)}), and `{form.single}` is there"
        remarks.append(what)
        return None
    if single and form.single not in shards:
        remarks.append(f"`{form.single}` is not used: `{form.index}` names other files, and all of them are there")
    return Weights(form, tuple(shards), places)


def find_indexed(index: Path, remarks: list[str]) -> Weights:
    """Find the weight files that an index names, whatever it is called.

    Parameters:
        index: ``NAME.SUFFIX.index.json``, as transformers writes it.
        remarks: is added to where something is there and not used.

    Raises:
        CheckpointError: it names no files, or files that are not there.
    """
    name = PurePosixPath(index.name.removesuffix(INDEX))
    form = Format(name.stem, name.suffix)
    return _indexed(index.parent, form, remarks) or Weights(form, (form.single,), None)


def _read_places(index: Path) -> dict[str, str]:
    places = read_object(index).get("weight_map")
    place = Place("weight_map", str(index))
    if not isinstance(places, dict) or not places:
        raise CheckpointError("the index names no tensors", place=place, expected="tensor names and their files")
    # One tensor stands for all of its shard: there may be a hundred thousand of them.
    for shard, name in {shard if isinstance(shard, str) else "": name for name, shard in places.items()}.items():
        if not is_plain(shard):
            what = f"tensor {name!r} is in {places[name]!r}"
            raise CheckpointError(what, place=place, expected="a file inside the folder")
    return places


def _single(root: Path, form: Format) -> Weights | None:
    return Weights(form, (form.single,), None) if is_there(root, form.single) else None


def _numbered(root: Path, form: Format, remarks: list[str]) -> Weights | None:
    """The one complete set `model-00001-of-0000N.safetensors` of a folder without index."""
    sets: dict[int, dict[int, str]] = {}
    for file in root.iterdir():
        if (match := form.numbered.fullmatch(file.name)) and is_there(root, file.name):
            sets.setdefault(int(match[2]), {})[int(match[1])] = file.name
    complete = [shards for count, shards in sets.items() if len(shards) == count == max(shards) and 0 not in shards]
    if len(complete) == 1:
        remarks.append(f"there is no `{form.index}`: every shard was asked for its tensors")
        return Weights(form, tuple(name for _, name in sorted(complete[0].items())), None)
    if not sets:
        return None
    found = listed(sorted(name for shards in sets.values() for name in shards.values()))
    what = f"there is no index, and the numbered shards are not one complete set: {found}"
    raise CheckpointError(what, place=str(root), expected=f"`{form.single}` or `{form.index}` and its shards")


def is_there(root: Path, name: str) -> bool:
    """Whether a file exists; a link is followed inside the folder and into the blobs of the hub's cache.

    Raises:
        CheckpointError: the link leads elsewhere.
    """
    file = root / name
    if not file.is_file():
        return False
    home, target = root.resolve(), file.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # of the hub's cache, which has blobs for a repository, or for all of them
        allowed += [repository / "blobs" for repository in home.parents[1:3]]
    if not any(target.is_relative_to(part) for part in allowed):
        raise CheckpointError(
            f"`{name}` is a link to `{target}`, outside of the folder",
            place=str(root),
            hint="the folder that it leads to, or a copy",
        )
    return True


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: it holds something else.
        OSError: it cannot be read.
    """
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


def is_plain(name: str) -> bool:
    """Whether a name stays inside the folder it is relative to, on every system."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return bool(name) and name.isprintable() and not any(path.anchor or ".." in path.parts for path in paths)


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names as they stand in a sentence."""
    known = list(names)
    rest = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(f"`{name}`" for name in known[:most]) + rest
