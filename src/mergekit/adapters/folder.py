"""The folder of an adapter: its config and the header of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit.adapters.config import LoraConfig, read_lora_config
from mergekit.checkpoint import Header, Stored, read_header
from mergekit.checkpoint.finding import is_there
from mergekit.checkpoint.pickled import open_pickle
from mergekit.errors import CheckpointError, MissingModelError

CONFIG = "adapter_config.json"
"""The file that says what the tensors of an adapter mean."""

WEIGHTS = "adapter_model.safetensors"
"""The file of its tensors."""

_PICKLED = "adapter_model.bin"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter as it lies on the disk.

    Parameters:
        root: its folder.
        config: what its tensors mean.
        tensors: they by name.
        file: where they are.
        remarks: what was found there and is no tensor, one sentence each.
    """

    root: Path
    config: LoraConfig
    tensors: Mapping[str, Stored]
    file: Path
    remarks: tuple[str, ...] = ()


def open_adapter(root: Path) -> Adapter:
    """Read what an adapter's folder holds: its config and the header of its weights, no weight.

    Parameters:
        root: a local folder with adapter_config.json and adapter_model.safetensors, or adapter_model.bin.

    Raises:
        MissingModelError: there is no such folder.
        CheckpointError: the folder does not hold an adapter.
        HeaderError: the weight file lies about its contents.
        UnsupportedError: it is an adapter that this version cannot apply.
    """
    try:
        return _opened(root)
    except OSError as error:
        place = str(error.filename or root)
        raise CheckpointError(f"the adapter cannot be read: {error.strerror}", place=place) from error


def _opened(root: Path) -> Adapter:
    expected = f"a folder with {CONFIG} and {WEIGHTS}"
    if not root.is_dir():
        what = "the adapter is a file, not a folder" if root.exists() else "there is no such folder"
        raise MissingModelError(what, place=str(root), expected=expected)
    if not is_there(root, CONFIG):
        hint = f"`{root}` as a model of its own: it is no adapter" if is_there(root, "config.json") else None
        raise CheckpointError(f"no {CONFIG} in the folder", place=str(root), expected=expected, hint=hint)
    config = read_lora_config(root / CONFIG)
    name = next((name for name in (WEIGHTS, _PICKLED) if is_there(root, name)), None)
    if name is None:
        raise CheckpointError(f"no {WEIGHTS} in the folder", place=str(root), expected=expected)
    file = root / name
    found = read_header(file) if name == WEIGHTS else open_pickle(file)
    if not found.tensors:
        raise CheckpointError("the adapter has no tensors", place=str(file))
    remarks = () if isinstance(found, Header) else found.remarks
    return Adapter(root, config, {stored.spec.name: stored for stored in found.tensors}, file, remarks)
