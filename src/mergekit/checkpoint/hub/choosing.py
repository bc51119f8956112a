"""Which files of a repository a merge needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from mergekit.checkpoint.companions import is_companion
from mergekit.checkpoint.finding import PICKLED, SAFETENSORS, Format, is_plain, read_object
from mergekit.errors import CheckpointError

ADAPTER = "adapter_config.json"
_ADAPTED = ("adapter_model.safetensors", "adapter_model.bin")
_FORMATS = (SAFETENSORS, PICKLED)
_ALWAYS = ("config.json", "README.md", *(form.index for form in _FORMATS))


def small_files(names: Iterable[str], adapter: bool) -> list[str]:
    """The files to look at first: config, indices, and everything that goes along with the weights.

    Parameters:
        names: all files of the repository.
        adapter: whether it is wanted as an adapter.
    """
    if adapter:
        return [name for name in names if name == ADAPTER]
    return [name for name in names if name in _ALWAYS or (is_companion(name) and is_plain(name))]


def weight_files(names: Collection[str], root: Path, adapter: bool) -> list[str]:
    """The files that hold the weights, and none that holds them once more.

    Parameters:
        names: all files of the repository.
        root: where the small ones already are.
        adapter: whether it is wanted as an adapter.

    Raises:
        CheckpointError: there are none, or several of which none is the model.
    """
    if adapter:
        return [name for name in _ADAPTED if name in names][:1]
    for form in _FORMATS:
        if found := _indexed(names, root, form) or _single(names, form) or _numbered(names, form):
            return found
    packed = sorted(name for name in names if name.endswith(".gguf") and "/" not in name)
    if len(packed) == 1:
        return packed
    expected = "safetensors, `pytorch_model.bin` or one GGUF file"
    if packed:
        what = f"the repository holds {len(packed)} GGUF files and no other weights"
        raise CheckpointError(
            what, expected=expected, hint=f"`hf download` of one of them, {packed[0]}, and its folder"
        )
    hint = "BASE+ADAPTER as the model: the repository holds an adapter" if ADAPTER in names else None
    raise CheckpointError("the repository holds no weights that can be read", expected=expected, hint=hint)


def _indexed(names: Collection[str], root: Path, form: Format) -> list[str]:
    if form.index not in names:
        return []
    places = read_object(root / form.index).get("weight_map")
    shards = sorted(set(map(str, places.values()))) if isinstance(places, Mapping) else []
    return shards if all(is_plain(shard) and shard in names for shard in shards) else []


def _single(names: Collection[str], form: Format) -> list[str]:
    return [form.single] if form.single in names else []


def _numbered(names: Collection[str], form: Format) -> list[str]:
    return sorted(name for name in names if form.numbered.fullmatch(name))
