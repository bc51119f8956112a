"""A GGUF file as the model that transformers would make of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mergekit.checkpoint.dtypes import DTYPES
from mergekit.checkpoint.folder import Checkpoint
from mergekit.checkpoint.gguf.architectures import Architecture, architecture_of
from mergekit.checkpoint.gguf.config import is_rope, rebuilt_config
from mergekit.checkpoint.gguf.container import Container, Entry, read_container
from mergekit.checkpoint.gguf.tokenizer import generation_text, settings_text, tokenizer_text
from mergekit.checkpoint.gguf.vocabulary import read_vocabulary
from mergekit.checkpoint.tensors import Blocks, Stored, TensorSpec
from mergekit.errors import CheckpointError

_CONFIG = "config.json"
_MEANT = "F16"  # what quantised entries stand for: it holds more of their digits than BF16 does


def open_gguf(file: Path, root: Path) -> Checkpoint:
    """Read a GGUF file's metadata and table of tensors, no weight.

    Names, shapes and the order of rows are those of Hugging Face's format. Tensors that are not quantised keep their
    dtype; quantised ones stand for float16. The config is rebuilt, and so are the files of the tokenizer that the
    folder does not have.

    Parameters:
        file: the file.
        root: the folder that is the model, or the file itself.

    Raises:
        HeaderError: the file contradicts the format, itself or its size.
        CheckpointError: it cannot be read, or holds what is not known.
    """
    container = read_container(file)
    parts = container.metadata.get("split.count", 1)
    if type(parts) is int and parts > 1:
        hint = "`llama-gguf-split --merge FIRST_PART WHOLE`, and WHOLE as the model"
        raise CheckpointError("the file is one part of a model", place=str(file), expected="a whole model", hint=hint)
    architecture = architecture_of(container)
    config = rebuilt_config(container, architecture)
    tensors = _tensors(container, architecture, config)
    config["dtype"] = config["torch_dtype"] = _dtype(tensors)
    texts, remarks = _texts(container, config)
    missing = {name: make for name, make in texts.items() if name == _CONFIG or not (root / name).is_file()}
    return Checkpoint(root, tensors, config, (file,), remarks, missing)


def _dtype(tensors: Mapping[str, Stored]) -> str:
    """The dtype of most entries."""
    counts: dict[str, int] = {}
    for stored in tensors.values():
        counts[stored.spec.dtype.title] = counts.get(stored.spec.dtype.title, 0) + stored.spec.count
    return max(counts, key=lambda title: counts[title])


def _tensors(container: Container, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    unknown = []
    for entry in container.entries.values():
        name = architecture.renamed(entry.name)
        if name is not None:
            tensors[name] = _stored(name, entry, architecture, config)
        elif not is_rope(entry.name):
            unknown.append(entry.name)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        what = f"a model of the architecture {architecture.name} has no tensor {unknown[0]!r}{more}"
        raise CheckpointError(what, place=str(container.file), hint="the model in Hugging Face's format")
    return tensors


def _stored(name: str, entry: Entry, architecture: Architecture, config: Mapping[str, Any]) -> Stored:
    heads = architecture.heads(entry.name, config)
    if heads and (not entry.shape or entry.shape[0] % (2 * heads)):
        what = f"tensor {entry.name!r} of shape {list(entry.shape)} does not have {heads} heads"
        raise CheckpointError(what, place=str(entry.extent.file))
    shift = architecture.shift if name.endswith("norm.weight") else 0.0
    spec = TensorSpec(name, DTYPES.get(entry.kind.name, DTYPES[_MEANT]), entry.shape)
    as_seen = entry.kind.name in DTYPES and not heads and not shift
    return Stored(spec, entry.extent, None if as_seen else Blocks(entry.kind, heads, shift))


def _texts(container: Container, config: Mapping[str, Any]) -> tuple[dict[str, Callable[[], str]], tuple[str, ...]]:
    """The small files of the model, made when they are asked for, and what is to be said about them."""
    texts: dict[str, Callable[[], str]] = {_CONFIG: lambda: json.dumps(config, indent=2) + "\n"}
    vocabulary, remark = read_vocabulary(container)
    if vocabulary is None:
        return texts, (remark,)
    texts["tokenizer.json"] = partial(tokenizer_text, vocabulary)
    texts["tokenizer_config.json"] = partial(settings_text, vocabulary, config["max_position_embeddings"])
    texts["generation_config.json"] = partial(generation_text, vocabulary)
    template = container.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        texts["chat_template.jinja"] = lambda: template
    return texts, ()
