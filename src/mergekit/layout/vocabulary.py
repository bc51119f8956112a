"""Find the tensors that have one row per token of the vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergekit.layout.parts import Role, Shape
from mergekit.layout.words import modality, words

_EMBEDDING = re.compile(r"(^|_)emb|^(tok_\w+|wte|w|shared)$")
_NOT_TOKENS = re.compile(
    r"(\b|_)pos|type|segm|patch|vision|visual|image|audio|class|rotary|rope|relative|per_layer|norm|\bln\b|proj|mask"
)
_HEAD = re.compile(
    r"(^|[._])(head|embed_out|unembed\w*|output\w*|proj_out|projector|decoder|predictions|linear|logits)"
)
_NOT_HEAD = re.compile(r"norm|\bln\b|dense|transform(?!er)")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which tensors outside of the layers count tokens, and along which axis.

    Parameters:
        key: dotted path of the vocabulary size in config.json, or None.
        roles: role and vocabulary axis by tensor name.
    """

    key: str | None
    roles: Mapping[str, tuple[Role, int]]


def _sizes(config: Mapping[str, object], path: str = "") -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if key == "vocab_size" and isinstance(value, int):
            yield path + key, value
        elif isinstance(value, Mapping) and modality(key) is None:
            yield from _sizes(value, f"{path}{key}.")


def vocabulary_keys(config: Mapping[str, object]) -> dict[str, int]:
    """Return every vocabulary size of the language model in config.json by its dotted path, the outermost first."""
    return dict(sorted(_sizes(config), key=lambda entry: (entry[0].count("."), "text" not in words(entry[0]))))


def _last_module(name: str) -> str:
    """The component that names the layer of a parameter: ``wte`` of ``transformer.wte.weight``."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]


def embeds_tokens(name: str) -> bool:
    """Whether a tensor is called like a token embedding."""
    last = _last_module(name)
    return bool(_EMBEDDING.search(last)) and not (_NOT_TOKENS.search(last) or _is_head(name))


def _is_embedding(name: str, shape: Shape) -> bool:
    return len(shape) == 2 and embeds_tokens(name)


def _is_head(name: str) -> bool:
    last = _last_module(name)
    embeds = _EMBEDDING.search(last) and last != "embed_out"
    return bool(_HEAD.search(name)) and not (_NOT_HEAD.search(name) or embeds)


def _rows(configured: int | None, embeddings: Mapping[str, Shape]) -> int | None:
    """The number of rows that makes a tensor the input embedding.

    Where config.json and the embedding disagree (a padded embedding, a stale config) the tensor is right.
    """
    heights = [shape[0] for shape in embeddings.values()]
    return configured if configured in heights or not heights else max(heights)


def _role(name: str, shape: Shape, rows: int, configured: int | None) -> tuple[Role, int] | None:
    if not _is_head(name):
        return ("embedding", 0) if _is_embedding(name, shape) and shape[0] == rows else None
    # Mllama's embedding has more rows than its head.
    if len(shape) == 2 and shape[0] in (rows, configured):
        return "head", 0
    if len(shape) == 1 and shape[0] in (rows, configured):
        return "head_bias", 0
    # BART keeps its bias as one row.
    return ("head_bias", 1) if shape == (1, rows) and "bias" in name else None


def find_vocabulary(shapes: Mapping[str, Shape], config: Mapping[str, object]) -> Vocabulary:
    """Return the vocabulary tensors among `shapes`.

    Parameters:
        shapes: shape by name of the tensors outside of all layers and of vision and audio towers.
        config: the parsed config.json; may be empty.
    """
    keys = vocabulary_keys(config)
    key = next(iter(keys), None)
    embeddings = {name: shape for name, shape in shapes.items() if _is_embedding(name, shape)}
    configured = keys[key] if key else None
    rows = _rows(configured, embeddings)
    roles = {name: role for name, shape in shapes.items() if rows and (role := _role(name, shape, rows, configured))}
    return Vocabulary(key, roles)
