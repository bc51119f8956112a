"""The ways in which config.json tells layers apart, each readable and writable for another order of layers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mergekit.layout.overlay import Periodic, overlay
from mergekit.layout.parts import Stack
from mergekit.layout.words import precedence, words

Settings: TypeAlias = Mapping[str, object]

_SIDES = frozenset({"encoder", "decoder", "vision", "audio"})
_NUMBERS = re.compile(
    r"(layer|block|attn|mlp|moe|full|global|deepstack).*(layers|idxs?|indexe?s?|indices|ids)$|_layers$"
)
_ENTRIES = re.compile(r"layer|block|pattern|types|heads|experts|theta|multipliers|window|_size$")
# From this many layers on, a list of just that length is no coincidence.
_TELLING_HEIGHT = 8


@dataclass(frozen=True, slots=True)
class Encoding(ABC):
    """One entry of a (sub-)config that says something about every layer of a stack.

    Parameters:
        key: the entry's key.
    """

    key: str

    @abstractmethod
    def read(self, settings: Settings, height: int) -> Sequence[object] | None:
        """Return what the entry says about each of `height` layers, or None if it says nothing."""

    @abstractmethod
    def write(self, values: Sequence[object]) -> object | None:
        """Return the entry that says `values`, or None if this kind of entry cannot say it."""


@dataclass(frozen=True, slots=True)
class Entries(Encoding):
    """A list, or a string, with one entry per layer.

    Parameters:
        tail: the entries behind the last layer, which are kept; empty where there are none.
    """

    tail: list[object] | str

    def read(self, settings: Settings, height: int) -> Sequence[object] | None:
        """Return the entries themselves."""
        value = settings.get(self.key)
        return value[:height] if isinstance(value, type(self.tail)) and len(value) >= height else None

    def write(self, values: Sequence[object]) -> object | None:
        """Return the values as a list or string, whichever it was."""
        if isinstance(self.tail, str):
            return "".join(map(str, values)) + self.tail
        return [*values, *self.tail]


@dataclass(frozen=True, slots=True)
class Numbers(Encoding):
    """A list of layer numbers.

    Parameters:
        length: how many numbers it must hold, or None for any.
    """

    length: int | None

    def read(self, settings: Settings, height: int) -> Sequence[object] | None:
        """Say of each layer whether it is listed."""
        value = settings.get(self.key)
        return [layer in value for layer in range(height)] if isinstance(value, list) else None

    def write(self, values: Sequence[object]) -> object | None:
        """Return the numbers of the layers that are listed."""
        numbers = [layer for layer, listed in enumerate(values) if listed]
        return numbers if self.length in (None, len(numbers)) else None


@dataclass(frozen=True, slots=True)
class Run(Encoding):
    """A number of layers at one end of the stack that differ from the rest.

    Parameters:
        trailing: whether they are the last ones, not the first.
        until: whether the entry is the number of the last layer before the run, -1 for no run.
    """

    trailing: bool
    until: bool = False

    def read(self, settings: Settings, height: int) -> Sequence[object] | None:
        """Say of each layer whether it is in the run."""
        value = settings.get(self.key)
        if not isinstance(value, int):
            return None
        length = (height - 1 - value if value >= 0 else 0) if self.until else value
        return [(height - 1 - layer if self.trailing else layer) < length for layer in range(height)]

    def write(self, values: Sequence[object]) -> object | None:
        """Return the length of the run, if the layers still form one."""
        count = sum(map(bool, values))
        run = values[len(values) - count :] if self.trailing else values[:count]
        if not all(run):
            return None
        return len(values) - 1 - count if self.until else count


@dataclass(frozen=True, slots=True)
class Keyed(Encoding):
    """Entries by layer number, for the layers that have one: ``{"05": {"head_dim": 512}}``.

    Parameters:
        digits: fewest digits of a number.
    """

    digits: int

    def read(self, settings: Settings, height: int) -> Sequence[object] | None:
        """Return the entry of each layer, None where it has none."""
        value = settings.get(self.key)
        if not isinstance(value, Mapping) or not _numbers_layers(value):
            return None
        entries = {int(number): entry for number, entry in value.items()}
        return [entries.get(layer) for layer in range(height)]

    def write(self, values: Sequence[object]) -> object | None:
        """Return the entries of the layers that have one."""
        return {f"{layer:0{self.digits}}": entry for layer, entry in enumerate(values) if entry is not None}


def _numbers_layers(value: Mapping[str, object]) -> bool:
    return bool(value) and all(isinstance(key, str) and key.isdigit() for key in value)


@dataclass(frozen=True, slots=True)
class EveryNth(Encoding):
    """A period: a number n where every n-th layer differs, or a string that repeats.

    Parameters:
        rule: where the period starts.
        letters: whether it is a string.
    """

    rule: Periodic
    letters: bool

    def read(self, settings: Settings, height: int) -> Sequence[object] | None:
        """Say of each layer whether it is an n-th one, or which letter of the string it has."""
        period, offset = settings.get(self.key), self.rule.offset
        if isinstance(period, str) and period:
            return [period[layer % len(period)] for layer in range(height)]
        if not isinstance(period, int) or period < 1:
            return None
        start = settings.get(offset, 0) if isinstance(offset, str) else offset
        return [(layer - start) % period == 0 for layer in range(height)] if isinstance(start, int) else None

    def write(self, values: Sequence[object]) -> object | None:
        """Return the letters one by one; a number cannot say anything but its period."""
        return "".join(map(str, values)) if self.letters else None


def _lists_numbers(key: str, value: list[object], height: int) -> bool:
    if key in overlay().per_layer or not _NUMBERS.search(key):
        return False
    numbers = {item for item in value if type(item) is int and 0 <= item < height}
    return value == sorted(numbers)


def _of_list(key: str, value: list[object], heights: Collection[int]) -> Encoding | None:
    """How a list speaks about layers: by number, by entry, or not at all."""
    height = min(heights)
    if key in overlay().not_per_layer or "token" in key:
        return None
    if _lists_numbers(key, value, height):
        return Numbers(key, len(value) if key in overlay().fixed_length else None)
    plain = all(isinstance(item, (str, int, float, Mapping)) or item is None for item in value)
    telling = key in overlay().per_layer or bool(_ENTRIES.search(key)) or height >= _TELLING_HEIGHT
    return Entries(key, value[height:]) if plain and telling and len(value) in heights else None


def _encoding(key: str, settings: Settings, heights: Collection[int]) -> Encoding | None:
    value = settings[key]
    if isinstance(value, list) and key not in overlay().leading | overlay().trailing:
        return _of_list(key, value, heights)
    if (rule := overlay().periodic.get(key)) is not None:
        replaced = any(isinstance(settings.get(other), list) for other in rule.unless)
        return None if replaced else EveryNth(key, rule, isinstance(value, str))
    if key in overlay().leading | overlay().trailing | overlay().until:
        return Run(key, key not in overlay().leading, key in overlay().until)
    if isinstance(value, Mapping) and "layer" in words(key) and _numbers_layers(value):
        return Keyed(key, min(map(len, value)))
    if isinstance(value, str) and "pattern" in key and len(value) in heights:
        return Entries(key, value[min(heights) :])
    return None


def with_implied(settings: Settings, height: int) -> Settings:
    """Add the list of layer kinds that loaders of this family work out where a (sub-)config has none."""
    implied = overlay().implied.get(str(settings.get("model_type")))
    if implied is None or settings.get(implied.list) is not None:
        return settings
    period = settings.get(implied.period_key)
    nth = period if isinstance(period, int) and period > 0 else implied.period
    kinds = ["sliding_attention" if (layer + 1) % nth else "full_attention" for layer in range(height)]
    return {**settings, implied.list: kinds}


def encodings(
    settings: Settings, stack: Stack, heights: Collection[int], beside: Collection[Stack] = ()
) -> list[Encoding]:
    """Return every entry of a (sub-)config that speaks about the layers of a stack.

    Parameters:
        settings: the (sub-)config.
        stack: the stack; entries that name another side (encoder, vision, …) are not its own.
        heights: the number of layers, and the number with multi-token-prediction layers.
        beside: the stacks of the model; a list that names no side and may be about one of them or this one is about
            that one which a bare count would count (LED: ``attention_window`` is the encoder's).
    """
    keys = [key for key in settings if _concerns(key, stack.prefix)]
    found = (_encoding(key, settings, heights) for key in keys if not _is_anothers(beside, stack, key, settings[key]))
    return [encoding for encoding in found if encoding is not None]


def _is_anothers(stacks: Collection[Stack], stack: Stack, key: str, value: object) -> bool:
    """Whether a list has an entry per layer of a stack of the same (sub-)config that precedes this one."""
    if _SIDES & words(key) or not isinstance(value, (list, str)):
        return False
    return any(
        other.count_key and other.config_path == stack.config_path and other.count == len(value)
        for other in stacks
        if precedence(other.prefix) > precedence(stack.prefix)
    )


def _concerns(key: str, prefix: str) -> bool:
    """Whether a key names no other side than the stack's: `decoder_layer_types` is not about an encoder."""
    own, named = _SIDES & words(prefix), _SIDES & words(key)
    return named <= own or (not own and key in overlay().periodic)
