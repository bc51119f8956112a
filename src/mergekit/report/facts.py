"""What an inspection finds: plain records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """Some of a model's tensors.

    Parameters:
        name: what they have in common.
        tensors: how many there are.
        parameters: how many entries they have.
        bytes: their size.
    """

    name: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Layers that hold the same tensors.

    Parameters:
        layers: their numbers, from 0.
        tensors: how many each of them holds.
        parameters: how many entries each of them has.
        marks: what only they have; empty where all layers are alike.
    """

    layers: tuple[int, ...]
    tensors: int
    parameters: int
    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """A module.

    Parameters:
        name: as recipes call it.
        aliases: its other names.
        prefix: what stands before the layers' numbers in the tensor names, or None without layers.
        layers: how many there are.
        count_key: the entry of config.json that counts them, or None.
        share: its tensors.
        kinds: its layers by what they hold.
        settings: what config.json says about each layer, by key, where that is not the same for all.
    """

    name: str
    aliases: tuple[str, ...]
    prefix: str | None
    layers: int
    count_key: str | None
    share: Share
    kinds: tuple[LayerKind, ...]
    settings: Mapping[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a module.

    Parameters:
        module: its name.
        count: experts in a layer, or None if the tensors do not say.
        configured: the same as config.json says it, or None.
        layers: how many layers have experts.
        stored: "per expert", a tensor for each matrix of each expert; or "fused", all experts in one tensor.
        matrices: names of the tensors within a layer, numbers as ``*``.
    """

    module: str
    count: int | None
    configured: int | None
    layers: int
    stored: str
    matrices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The vocabulary.

    Parameters:
        embedding: name of the input embedding, or None.
        rows, width: its shape.
        key: the entry of config.json that holds the size of the vocabulary, or None.
        configured: that size.
        tokenizer: tokens of tokenizer.json, the largest number and those below it; None if it is not there or long.
        head: name of the output head, or None.
        tied: whether loaders use the embedding as the head.
        tie_configured: ``tie_word_embeddings`` in config.json, or None if it is silent.
    """

    embedding: str | None
    rows: int | None
    width: int | None
    key: str | None
    configured: int | None
    tokenizer: int | None
    head: str | None
    tied: bool
    tie_configured: bool | None


@dataclass(frozen=True, slots=True)
class Slicing:
    """What ``layer_range`` cuts, and where the rest comes from.

    Parameters:
        modules: names of the modules that can be cut; if there are several, recipes name one under ``modules:``.
        before: tensors of the first of them that come from the first slice.
        after: tensors that come from the last slice.
        whole: names of the modules that have no layers and stay whole.
    """

    modules: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    whole: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor and its place."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    module: str
    layer: int | None
    part: str
    file: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a model is; see the classes of the fields.

    Parameters:
        path: where it is.
        architectures, model_type: as in config.json.
        total: all tensors.
        dtypes: the tensors by dtype, or by kind of blocks in GGUF; most bytes first.
        parts: the tensors by what they are for.
        quantisation: method in config.json's ``quantization_config``, or None.
        packed: dtypes and kinds of blocks that are no plain numbers.
        unpacked: entries of all weights without quantisation; None if it is of a kind that is not read.
        recomputed: buffers that loaders compute, by name, with the reason.
        unrecognised: names that say nothing about what a tensor is for, numbers as ``*``.
        contradictions: what config.json says and the tensors do not.
        remarks: what was found and not used.
        files: the files with the tensors in each.
        tensors: every tensor.
    """

    path: str
    architectures: tuple[str, ...]
    model_type: str | None
    total: Share
    dtypes: tuple[Share, ...]
    modules: tuple[ModuleFacts, ...]
    parts: tuple[Share, ...]
    experts: tuple[Experts, ...]
    tokens: Tokens
    quantisation: str | None
    packed: tuple[str, ...]
    unpacked: int | None
    slicing: Slicing
    recomputed: Mapping[str, str]
    unrecognised: tuple[str, ...]
    contradictions: tuple[str, ...]
    remarks: tuple[str, ...]
    files: tuple[Share, ...]
    tensors: tuple[TensorFacts, ...]
