"""Rebuild config.json from the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint.gguf.architectures import Architecture
from mergekit.checkpoint.gguf.container import Container
from mergekit.checkpoint.gguf.kinds import unpack
from mergekit.checkpoint.reading import Files
from mergekit.errors import CheckpointError

_FREQUENCIES, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_MOST = 4096  # divisors of frequencies
_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """The metadata of a file, looked up with distrust.

    Parameters:
        container: the file.
        prefix: what stands before the keys, ``llama.``.
    """

    container: Container
    prefix: str

    def number(self, key: str) -> int | float | None:
        """A finite number, or None if there is no such setting.

        Raises:
            CheckpointError: the setting is something else.
        """
        value = self.container.metadata.get(self.prefix + key)
        if value is None or (type(value) in (int, float) and math.isfinite(value)):
            return value
        what = "differs between layers" if isinstance(value, np.ndarray) else f"is {str(value)[:60]!r}"
        raise self._wrong(f"`{self.prefix}{key}` {what}", "a finite number")

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer.

        Raises:
            CheckpointError: there is none, and no default.
        """
        value = self.number(key)
        value = default if value is None else value
        if type(value) is int and 0 < value < 2**31:
            return value
        found = "is missing" if value is None else f"is {value}"
        raise self._wrong(f"`{self.prefix}{key}` {found}", "a positive integer")

    def _wrong(self, what: str, expected: str) -> CheckpointError:
        return CheckpointError(what, place=str(self.container.file), expected=expected)


def is_rope(name: str) -> bool:
    """Whether a tensor is no weight but tells how positions are scaled, which is in config.json."""
    return name in (_FREQUENCIES, _LONG, _SHORT)


def rebuilt_config(container: Container, architecture: Architecture) -> dict[str, Any]:
    """The contents of config.json.

    Parameters:
        container: the file.
        architecture: its architecture.

    Raises:
        CheckpointError: a setting is missing or makes no sense, or positions are scaled in a way that is not known.
    """
    settings = Settings(container, f"{architecture.name}.")
    heads = settings.count("attention.head_count")
    width = settings.count("embedding_length")
    config: dict[str, Any] = {"architectures": [architecture.class_name], "model_type": architecture.model_type}
    config |= {key: _required(settings, source) for key, source in architecture.config.items()}
    config |= {key: settings.number(source) or None for key, source in architecture.optional.items()}
    config |= {
        "num_key_value_heads": settings.count("attention.head_count_kv", heads),
        "head_dim": settings.count("attention.key_length", max(1, width // heads)),
        "vocab_size": _rows(container),
        "tie_word_embeddings": "output.weight" not in container.entries,
        **_tokens(container),
    }
    config |= {key: f"blk.0.{stem}.bias" in container.entries for key, stem in architecture.biases.items()}
    return config | _positions(settings, config) | _attention(architecture, config)


def _required(settings: Settings, source: str) -> int | float:
    value = settings.number(source)
    if isinstance(value, float) and value > 0:
        return value
    return settings.count(source)


def _rows(container: Container) -> int:
    embedding = container.entries.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError("the file has no matrix `token_embd.weight`", place=str(container.file))
    return embedding.shape[0]


def _tokens(container: Container) -> dict[str, int | None]:
    settings, rows = Settings(container, "tokenizer.ggml."), _rows(container)
    ids = {key: settings.number(f"{source}_token_id") for key, source in _TOKENS.items()}
    return {key: value if type(value) is int and 0 <= value < rows else None for key, value in ids.items()}


def _attention(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, int]:
    """What the queries of Gemma 2 and 3 are scaled by, which is no setting of the format."""
    if not architecture.sizes:
        return {}
    return {"query_pre_attn_scalar": architecture.sizes.get(str(config["num_hidden_layers"]), config["head_dim"])}


def _positions(settings: Settings, config: Mapping[str, Any]) -> dict[str, Any]:
    """The base of rotary positions, how they are scaled, and which share of a head they turn."""
    theta = float(settings.number("rope.freq_base") or 10000.0)
    if theta <= 0:
        raise CheckpointError(f"the base of rotary positions is {theta}", place=str(settings.container.file))
    positions: dict[str, Any] = {"rope_theta": theta}
    local = settings.number("rope.freq_base_swa")
    if local:
        positions["rope_local_base_freq"] = float(local)
    turned = settings.number("rope.dimension_count")
    if config["model_type"] == "phi3" and turned and turned != config["head_dim"]:
        positions["partial_rotary_factor"] = turned / config["head_dim"]
    return positions | _scaling(settings, theta, config)


def _scaling(settings: Settings, theta: float, config: Mapping[str, Any]) -> dict[str, Any]:
    entries = settings.container.entries
    original = settings.number("rope.scaling.original_context_length")
    if _LONG in entries and _SHORT in entries:
        lists = {
            "long_factor": _divisors(settings, _LONG).tolist(),
            "short_factor": _divisors(settings, _SHORT).tolist(),
        }
        longrope: dict[str, Any] = {"rope_scaling": {"rope_type": "longrope", "type": "longrope", **lists}}
        return {**longrope, "original_max_position_embeddings": original} if original else longrope
    if _FREQUENCIES in entries:
        return {"rope_scaling": _llama3(_divisors(settings, _FREQUENCIES), theta, config, settings.container)}
    kind = str(settings.container.metadata.get(f"{settings.prefix}rope.scaling.type", "none"))[:60]
    factor = settings.number("rope.scaling.factor")
    if kind == "none" or not factor:
        return {}
    if kind not in ("linear", "yarn") or (kind == "yarn" and not original):
        what = f"positions are scaled by {kind!r}, which is not known"
        raise CheckpointError(what, place=str(settings.container.file), expected="none, linear, yarn or longrope")
    scaling = {"rope_type": kind, "factor": float(factor)}
    return {"rope_scaling": scaling if kind == "linear" else {**scaling, "original_max_position_embeddings": original}}


def _divisors(settings: Settings, name: str) -> NDArray[np.float32]:
    """The entries of a small tensor that divide the frequencies of rotary positions."""
    container, entry = settings.container, settings.container.entries[name]
    count = math.prod(entry.shape)
    if not 0 < count <= _MOST:
        raise CheckpointError(f"`{name}` has {count:,} entries", place=str(container.file), expected="half a head's")
    octets, entries = np.empty(entry.extent.nbytes, np.uint8), np.empty(count, np.float32)
    with Files() as files:
        files.read(entry.extent, octets)
    unpack(entry.kind, octets, entries)
    if not np.isfinite(entries).all():
        raise CheckpointError(f"`{name}` holds NaN or infinity", place=str(container.file))
    return entries


def _llama3(
    factors: NDArray[np.float32], theta: float, config: Mapping[str, Any], container: Container
) -> dict[str, Any]:
    """The settings of Llama 3.1 that give these divisors of the frequencies, which is all that the file has of them."""
    low, high, original = 1.0, 4.0, 8192
    factor = float(factors.max(initial=1.0))
    if theta <= 0:
        raise CheckpointError(f"the base of rotary positions is {theta}", place=str(container.file))
    frequencies = theta ** -(np.arange(len(factors)) / len(factors))
    turns = original * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if 2 * len(factors) == config["head_dim"] and np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
    what = "the file scales positions (`rope_freqs.weight`) in another way than Llama 3.1"
    raise CheckpointError(what, place=str(container.file), hint="the model in Hugging Face's format")
