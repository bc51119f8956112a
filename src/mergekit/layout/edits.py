"""Change in config.json what a merge changes, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from mergekit.checkpoint.quantised import KEYS as QUANTISATION_KEYS
from mergekit.errors import IncompatibleModelsError
from mergekit.layout.jsontext import Path, rewrite, without
from mergekit.layout.parts import Layout, Stack
from mergekit.layout.perlayer import Encoding, EveryNth, Run, Settings, encodings, with_implied
from mergekit.layout.stacks import count_keys
from mergekit.layout.vocabulary import vocabulary_keys
from mergekit.layout.words import modality

LayerOrigin: TypeAlias = tuple[Mapping[str, object], Layout, int]

_DTYPE_KEYS = ("dtype", "torch_dtype")
_TIE_KEY = "tie_word_embeddings"


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where one output layer comes from: its model's own settings, that model's height, and the layer's number."""

    settings: Settings
    height: int
    layer: int


def _path(dotted: str) -> Path:
    return tuple(dotted.split(".")) if dotted else ()


def _at(config: Settings, path: Path) -> Settings:
    """The sub-config at a path; empty where there is none."""
    for key in path:
        nested = config.get(key)
        config = nested if isinstance(nested, Mapping) else {}
    return config


def _origin(config: Settings, layout: Layout, module: str, layer: int) -> _Origin:
    stack = (layout.module(module) or layout.main).stack
    if stack is None or not 0 <= layer < stack.count:
        raise IncompatibleModelsError(
            f"layer {layer} of module `{module}` does not exist",
            expected=f"0 to {stack.count - 1}" if stack else "a model with numbered layers",
        )
    settings = _at(config, _path(stack.config_path))
    return _Origin(with_implied(settings, stack.count), stack.count, layer)


def _value(encoding: Encoding, origin: _Origin, own: Sequence[object]) -> object:
    """What a layer's own config says about it; where that is silent, what the donor's says about the same layer."""
    told = encoding.read(origin.settings, origin.height)
    if told is not None:
        return told[origin.layer]
    if origin.layer < len(own):
        return own[origin.layer]
    raise IncompatibleModelsError(
        f"`{encoding.key}` of config.json has no value for layer {origin.layer}",
        expected=f"`{encoding.key}` in the config.json of every model that gives layers, as in the donor's",
        hint="the model with the most layers as `base_model`",
    )


def _restacked(encoding: Encoding, settings: Settings, height: int, origins: Sequence[_Origin]) -> object:
    """The entry for the new order of layers: the old one where it still says the truth."""
    old, own = settings[encoding.key], encoding.read(settings, height)
    if own is None:
        return old
    values = [_value(encoding, origin, own) for origin in origins]
    told = encoding.read(settings, len(values))
    # A list of another height's length is stale even where it begins right; a count or a period is not.
    if told == values and (len(values) == height or isinstance(encoding, (EveryNth, Run))):
        return old
    new = encoding.write(values)
    if new is None:
        raise _contradiction(encoding, old, values, told)
    return new


def _contradiction(
    encoding: Encoding, old: object, values: Sequence[object], told: Sequence[object] | None
) -> IncompatibleModelsError:
    layers = [str(layer) for layer, value in enumerate(values) if value]
    listing = ", ".join(layers[:16]) + (", …" if len(layers) > 16 else "") if layers else "none"
    wrong = [layer for layer, value in enumerate(values) if told is None or told[layer] != value]
    return IncompatibleModelsError(
        f"config.json cannot describe these layers: `{encoding.key}: {old}` would have to mean output layers {listing}",
        place=f"output layer {wrong[0]}" if wrong else None,
        expected="each layer at a place where the config treats it as its own model did",
        hint="slices whose bounds keep the order of layer kinds",
    )


def _count_changes(config: Settings, stack: Stack, count: int) -> dict[Path, object]:
    if stack.count_key is not None:
        return {_path(key): count for key in (stack.count_key, *stack.same_count_keys)}
    # A list with an entry per layer counts them too, and follows the layers like all such lists (Nemotron-H).
    numbers = [key for key in count_keys(config) if not (key.listed and key.value == stack.count)]
    if count != stack.count and any(key.may_count(stack.prefix) or key.value == stack.count for key in numbers):
        raise IncompatibleModelsError(
            f"config.json does not say that `{stack.prefix}` has {stack.count} layers, so {count} cannot be set",
            expected=f"a layer count of {stack.count}, as the tensors have",
        )
    return {}


def _stack_changes(
    config: Settings, stack: Stack, origins: Sequence[_Origin], beside: Sequence[Stack]
) -> dict[Path, object]:
    """New layer count and per-layer entries for one stack."""
    changes = _count_changes(config, stack, len(origins))
    where = _path(stack.config_path)
    written = _at(config, where)
    settings, implied = with_implied(written, stack.count), with_implied(written, len(origins))
    predicted = {key.predicted for key in count_keys(config) if key.config_path == stack.config_path}
    heights = frozenset({stack.count, *(stack.count + extra for extra in predicted)})
    for encoding in encodings(settings, stack, heights, beside):
        entry = _restacked(encoding, settings, stack.count, origins)
        if encoding.key in written or entry != implied[encoding.key]:
            changes[(*where, encoding.key)] = entry
    return changes


def _layer_changes(config: Settings, donor: Layout, stacked: Mapping[str, Sequence[LayerOrigin]]) -> dict[Path, object]:
    changes: dict[Path, object] = {}
    counts = {}
    for name, layers in stacked.items():
        module = donor.module(name)
        if module is None or module.stack is None:
            raise IncompatibleModelsError(f"module `{name}` has no layers to stack", expected=_stacked_names(donor))
        origins = [_origin(source, layout, name, layer) for source, layout, layer in layers]
        counts[module.name] = len(origins)
        changes |= _stack_changes(config, module.stack, origins, donor.stacks)
    _check_shared_counts(donor, counts)
    return changes


def _stacked_names(donor: Layout) -> str:
    return "one of " + ", ".join(f"`{module.name}`" for module in donor.modules if module.stack)


def _check_shared_counts(donor: Layout, counts: Mapping[str, int]) -> None:
    """One entry of config.json that counts two stacks (an old T5) cannot hold two numbers."""
    by_key: dict[str, dict[str, int]] = {}
    for module in donor.modules:
        if module.stack and module.stack.count_key:
            heights = by_key.setdefault(module.stack.count_key, {})
            heights[module.name] = counts.get(module.name, module.stack.count)
    for key, heights in by_key.items():
        if len(set(heights.values())) > 1:
            listing = ", ".join(f"`{name}` {count}" for name, count in heights.items())
            raise IncompatibleModelsError(
                f"`{key}` of config.json counts the layers of several modules, which now differ: {listing}",
                expected="equal numbers of layers, or one entry per module in the donor's config.json",
            )


def _model_configs(config: Settings, path: Path = ()) -> Iterator[tuple[Path, Settings]]:
    """The config and those nested in it that describe models."""
    yield path, config
    for key, value in config.items():
        if (
            isinstance(value, Mapping)
            and key not in QUANTISATION_KEYS
            and (key.endswith("config") or "model_type" in value)
        ):
            yield from _model_configs(value, (*path, key))


def _dtype_changes(config: Settings, dtype: str) -> dict[Path, object]:
    changes: dict[Path, object] = {}
    for path, nested in _model_configs(config):
        for key in _DTYPE_KEYS:
            # A nested null inherits; at the top it means float32.
            if key in nested and (nested[key] is not None or not path) and nested[key] != f"torch.{dtype}":
                changes[(*path, key)] = dtype
    if not any(key in config for key in _DTYPE_KEYS):
        changes[("torch_dtype",)] = dtype
    return changes


def _tie_changes(config: Settings, donor: Layout, tied: bool) -> dict[Path, object]:
    homes = [
        path
        for path, nested in _model_configs(config)
        if _TIE_KEY in nested and len(path) < 2 and not any(map(modality, path))
    ]
    if not homes and tied != donor.tied:
        homes = [()]
    return {(*home, _TIE_KEY): tied for home in homes}


def _quantisation(config: Settings) -> Iterator[Path]:
    """Where the config, or one in it that describes a model, speaks of quantisation."""
    for path, nested in _model_configs(config):
        yield from ((*path, key) for key in QUANTISATION_KEYS if key in nested)


def _vocabulary_changes(config: Settings, donor: Layout, size: int) -> dict[Path, object]:
    sizes = vocabulary_keys(config)
    if donor.vocab_key is None:
        stack = donor.main.stack
        return {(*_path(stack.config_path if stack else ""), "vocab_size"): size}
    return {_path(key): size for key, value in sizes.items() if value == sizes[donor.vocab_key]}


def _differs(config: Settings, path: Path, value: object) -> bool:
    settings = _at(config, path[:-1])
    return path[-1] not in settings or settings[path[-1]] != value


def edit_config(
    text: str,
    *,
    donor: Layout,
    stacked: Mapping[str, Sequence[LayerOrigin]] = MappingProxyType({}),
    dtype: str | None = None,
    tied: bool | None = None,
    vocab_size: int | None = None,
    unquantised: bool = False,
) -> str:
    """Return the config.json of a merged model: the donor's text with the fewest changes.

    Order, spacing and number formats stay as they are; where nothing changes the very same text comes back.
    For a new order of layers the layer count is set, and everything that tells layers apart follows the layers:
    lists and strings with an entry per layer, lists of layer numbers, leading counts, periods.

    Parameters:
        text: config.json of the donor.
        donor: its layout.
        stacked: output layers in order, by module name; each as its model's config, that model's layout, and its
            layer number there. Modules that are not named keep their layers.
        dtype: name of the dtype that is written (``bfloat16``), or None to leave it.
        tied: whether loaders shall use the embedding as output head, or None to leave it.
        vocab_size: rows of the embedding that is written, or None to leave it.
        unquantised: remove what is said about quantised weights.

    Raises:
        IncompatibleModelsError: config.json cannot describe the stack, or names no layer count that could be set.

    Example:
        >>> from mergekit.layout import read_layout
        >>> text = '{"num_hidden_layers": 2, "layer_types": ["a", "b"]}'
        >>> config = {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
        >>> layout = read_layout({"layers.0.w": (2, 2), "layers.1.w": (2, 2)}, config)
        >>> layers = [(config, layout, 1), (config, layout, 0), (config, layout, 1)]
        >>> edit_config(text, donor=layout, stacked={"default": layers})
        '{"num_hidden_layers": 3, "layer_types": ["b", "a", "b"]}'
    """
    config = json.loads(text)
    changes = _layer_changes(config, donor, stacked)
    if dtype is not None:
        changes |= _dtype_changes(config, dtype)
    if tied is not None:
        changes |= _tie_changes(config, donor, tied)
    if vocab_size is not None:
        changes |= _vocabulary_changes(config, donor, vocab_size)
    needed = {path: value for path, value in changes.items() if _differs(config, path, value)}
    gone = [path for path in _quantisation(config) if unquantised]
    return rewrite(without(text, gone), needed) if needed or gone else text
