"""What a dense model computes beyond its tensors, as far as mixtures may differ in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

QKV_BIAS, O_BIAS = "qkv_bias", "o_bias"
HEAD_NORMS, WIDE_NORMS = "head_norms", "wide_norms"
WINDOW, LAYER_WINDOWS = "window", "layer_windows"
MULTIPLIERS, HEAD_DIM, ROPE = "multipliers", "head_dim", "rope"
UNKNOWN, OTHER = "unknown", "other"

BLURRED = frozenset({WINDOW, LAYER_WINDOWS, ROPE, UNKNOWN})
"""Traits that a mixture can be written without, though it then computes otherwise."""

_WINDOWED = frozenset({"qwen2", "qwen3"})
_LONGEST = 1 << 20  # positions of a model whose config does not say how many it has


@dataclass(frozen=True, slots=True)
class Trait:
    """Something that a family of mixtures can say, or cannot.

    Parameters:
        kind: one of the constants of this module.
        about: what the dense model does, in a clause: ``the base's queries, keys and values have biases``.
    """

    kind: str
    about: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of dense model that is understood.

    Parameters:
        defaults: what loaders assume where config.json is silent.
        traits: what its config says that matters.
    """

    defaults: Mapping[str, object]
    traits: Callable[[Config], Iterator[Trait]] = lambda _: iter(())


def _window(config: Config) -> Iterator[Trait]:
    width = config.get("sliding_window")
    longest = config.get("max_position_embeddings") or _LONGEST
    if isinstance(width, int) and width < longest:
        yield Trait(WINDOW, f"the base's attention sees {width} tokens (`sliding_window`)")


def window_types(config: Config) -> list[str]:
    """The kind of attention in each layer of a Qwen model, as its config has it or means it."""
    count = config["num_hidden_layers"]
    told = config.get("layer_types")
    if isinstance(told, list) and len(told) == count:
        return told
    first = config.get("max_window_layers", 28) if config.get("use_sliding_window") else count
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(count)]


def _windows(config: Config) -> Iterator[Trait]:
    kinds = set(window_types(config)) if config.get("use_sliding_window") else set()
    width = config.get("sliding_window", 4096)
    if kinds == {"sliding_attention"}:
        yield Trait(WINDOW, f"the base's attention sees {width} tokens (`use_sliding_window`)")
    elif "sliding_attention" in kinds:
        yield Trait(LAYER_WINDOWS, f"some of the base's layers see {width} tokens and others all (`layer_types`)")


def _partial(config: Config) -> Iterator[Trait]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factor = config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
    if factor != 1.0:
        yield Trait(
            OTHER, f"only {factor:g} of each of the base's heads is rotated by position (`partial_rotary_factor`)"
        )
    if rope.get("rope_type", rope.get("type")) in ("longrope", "su", "yarn"):
        yield Trait(OTHER, "the base's positions are rotated by two lists of factors (`longrope`)")


def _phi(config: Config) -> Iterator[Trait]:
    yield from _window(config)
    yield from _partial(config)


_MULTIPLIERS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")


def _granite(_: Config) -> Iterator[Trait]:
    yield Trait(MULTIPLIERS, f"the base multiplies what it computes ({', '.join(f'`{key}`' for key in _MULTIPLIERS)})")


def _refused(*abouts: str) -> Callable[[Config], Iterator[Trait]]:
    return lambda _: (Trait(OTHER, about) for about in abouts)


_LLAMA = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QWEN = {**_LLAMA, "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None}
_SCALED = "the base's embeddings are multiplied by the root of their width"
_OFFSET = "1 is added to the weights of the base's norms"
_OWN_NORMS = "the base's norms stand behind attention and MLP instead of before them"

KINDS: Mapping[str, Kind] = {
    "llama": Kind(_LLAMA),
    "mistral": Kind({**_LLAMA, "max_position_embeddings": 131072, "sliding_window": 4096}, _window),
    "qwen2": Kind(_QWEN, _windows),
    "qwen3": Kind({**_QWEN, "head_dim": 128}, _windows),
    "phi3": Kind({**_LLAMA, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}, _phi),
    "granite": Kind(
        {**_LLAMA, **dict.fromkeys(_MULTIPLIERS, 1.0)},
        _granite,
    ),
    "gemma": Kind({}, _refused(_SCALED, _OFFSET)),
    "gemma2": Kind({}, _refused(_SCALED, _OFFSET, "the base's attention scores and logits are capped")),
    "gemma3": Kind({}, _refused(_SCALED, _OFFSET)),
    "gemma3_text": Kind({}, _refused(_SCALED, _OFFSET)),
    "olmo": Kind({}, _refused("the base's norms have no weights")),
    "olmo2": Kind({}, _refused(_OWN_NORMS)),
    "olmo3": Kind({}, _refused(_OWN_NORMS)),
    "stablelm": Kind({}, _refused("the base's norms subtract the mean")),
    "cohere": Kind(
        {}, _refused("the base's norms subtract the mean", "the base's attention and MLP stand side by side")
    ),
    "cohere2": Kind(
        {}, _refused("the base's norms subtract the mean", "the base's attention and MLP stand side by side")
    ),
    "smollm3": Kind({}, _refused("some of the base's layers rotate nothing by position")),
}
"""Types of dense models by what config.json calls them."""

LIKE_LLAMA = tuple(name for name, kind in KINDS.items() if kind.defaults)
"""Those that compute as Llama does, but for traits that mixtures can have."""


def with_defaults(config: Config) -> dict[str, Any]:
    """A config with what loaders assume where it is silent."""
    kind = KINDS.get(str(config.get("model_type")))
    return {**(kind.defaults if kind else {}), **config}


def config_traits(config: Config) -> Iterator[Trait]:
    """What a config says about a dense model that mixtures may differ in.

    Parameters:
        config: with defaults.
    """
    name = str(config.get("model_type"))
    if name in KINDS:
        yield from KINDS[name].traits(config)
    else:
        yield Trait(UNKNOWN, f"what a model of type `{name}` computes is not known here")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "dynamic"):
        yield Trait(ROPE, f"the base's positions are scaled by `{kind}`")
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if width and heads and config.get("head_dim") not in (None, width // heads):
        yield Trait(HEAD_DIM, f"the base's heads are {config['head_dim']} wide (`head_dim`), not {width // heads}")
