"""Find the stacks of layers in a checkpoint from tensor names, shapes and config.json."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergekit.layout.parts import Shape, Stack
from mergekit.layout.words import is_list, modality, precedence, words

_NUMBERED = re.compile(r"(.+?)\.(\d+)\.(.+)")
_NESTED = re.compile(r"(layers?|blocks?)\.\d+\.")
_LAYER_WORDS = frozenset({"layer", "layers", "depth", "block", "blocks"})
_NEUTRAL_WORDS = _LAYER_WORDS | {"config", "cfg", "num", "n", "hidden", "model", "text", "vlm"}
_KIND_LISTS = ("layer_types", "layers_block_type")
_PREDICTION_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "num_mtp_modules")


def split_name(name: str) -> tuple[str, int, str] | None:
    """Split a tensor name at its first ``.<int>.`` into prefix, number and suffix; None where there is none.

    Example:
        >>> split_name("encoder.block.2.layer.0.wo.weight")
        ('encoder.block', 2, 'layer.0.wo.weight')
    """
    match = _NUMBERED.fullmatch(name)
    if match is None or match[1].isdigit():
        return None
    return match[1], int(match[2]), match[3]


@dataclass(frozen=True, slots=True)
class CountKey:
    """An entry of config.json that may say how many layers a stack has.

    Parameters:
        path: its dotted path.
        value: the number of layers that it says.
        predicted: multi-token-prediction layers behind them, by the same sub-config.
        listed: whether it is a list with one entry per layer; Nemotron-H has no other count.
    """

    path: str
    value: int
    predicted: int
    listed: bool

    @property
    def words(self) -> frozenset[str]:
        """What the key says about the stack that it counts: ``vision_config.depth`` says vision."""
        # A tower is an encoder, whether its prefix says so or not.
        implied = {"encoder"} if modality(self.path) else set()
        said = words(self.config_path if self.listed else self.path)
        return said - _NEUTRAL_WORDS - implied

    @property
    def config_path(self) -> str:
        """Dotted path of the sub-config that holds the entry; empty for config.json itself."""
        return self.path.rpartition(".")[0]

    def may_count(self, prefix: str) -> bool:
        """Whether the key says nothing that the prefix does not say."""
        return self.words <= words(prefix)

    def affinity(self, prefix: str) -> tuple[int, bool]:
        """How many words the key shares with a prefix, and whether both begin alike."""
        said = self.words | (words(self.path) & {"text"})
        return len(said & words(prefix)), self.path.split(".")[0] == prefix.split(".")[0]


def count_keys(config: Mapping[str, object], path: str = "") -> Iterator[CountKey]:
    """Yield every entry of config.json, at any depth, whose name speaks of layers and whose value is a number."""
    predicted = next((value for key in _PREDICTION_KEYS if isinstance(value := config.get(key), int)), 0)
    for key, value in config.items():
        if isinstance(value, Mapping):
            if key != "quantization_config":
                yield from count_keys(value, f"{path}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool) and _LAYER_WORDS & words(key):
            yield CountKey(path + key, value, predicted, False)
        elif isinstance(value, list) and key in _KIND_LISTS:
            yield CountKey(path + key, len(value), predicted, True)


@dataclass(frozen=True, slots=True)
class _Group:
    """All tensors under one numbered prefix; even if those of one name have one shape throughout."""

    prefix: str
    suffixes: Mapping[int, frozenset[str]]
    matrices: int
    even: bool

    @property
    def height(self) -> int:
        return len(self.suffixes)

    @property
    def deep(self) -> bool:
        """Whether an average layer holds two matrices or more, unlike the entries of most other lists."""
        return self.matrices >= 2 * self.height

    @property
    def repeats(self) -> bool:
        """Whether two of its layers hold the same tensors."""
        return Counter(self.suffixes.values()).most_common(1)[0][1] >= 2

    @property
    def staged(self) -> bool:
        """Whether these are stages with layers of their own, each of another width (Swin, ResNet)."""
        return not self.even and any(_NESTED.match(suffix) for suffix in self.suffixes[0])

    def is_candidate(self) -> bool:
        numbered = self.suffixes.keys() == set(range(self.height))
        return numbered and not is_list(self.prefix) and not self.staged

    def run(self, key: CountKey) -> tuple[int, int] | None:
        """Return number of the first layer and count, if the key counts this prefix's layers; else None."""
        if not key.may_count(self.prefix) or key.value < 1:
            return None
        if key.value in (self.height, self.height - key.predicted):
            return 0, key.value
        return self._between(key.value)

    def _between(self, value: int) -> tuple[int, int] | None:
        """An embedding numbered as first and a head as last entry leave the layers between them (phi-1)."""
        last = self.height - 1
        if value != self.height - 2 or self.suffixes[0] & self.suffixes[1] or self.suffixes[last] & self.suffixes[1]:
            return None
        return 1, value


def _groups(shapes: Mapping[str, Shape]) -> list[_Group]:
    suffixes: dict[str, dict[int, set[str]]] = {}
    matrices: Counter[str] = Counter()
    sizes: dict[tuple[str, str], set[Shape]] = {}
    for name, shape in shapes.items():
        if (split := split_name(name)) is not None:
            prefix, number, suffix = split
            suffixes.setdefault(prefix, {}).setdefault(number, set()).add(suffix)
            matrices[prefix] += len(shape) >= 2
            sizes.setdefault((prefix, suffix), set()).add(shape)
    uneven = {prefix for (prefix, _), found in sizes.items() if len(found) > 1}
    return [
        _Group(
            prefix,
            {number: frozenset(names) for number, names in layers.items()},
            matrices[prefix],
            prefix not in uneven,
        )
        for prefix, layers in suffixes.items()
    ]


def _owners(key: CountKey, groups: Iterable[_Group]) -> set[str]:
    """Prefixes that a key means when several have as many layers as it says."""
    ranks = {
        group.prefix: (key.affinity(group.prefix), group.deep, precedence(group.prefix))
        for group in groups
        if group.run(key)
    }
    return {prefix for prefix, rank in ranks.items() if rank == max(ranks.values())}


def _keyed(group: _Group, keys: Sequence[CountKey], owners: Mapping[str, set[str]]) -> Stack | None:
    """The stack that config.json counts, or None if no entry fits this prefix."""
    owned = [key for key in keys if group.prefix in owners[key.path]]
    shared = [key for key in keys if group.run(key)] if group.deep and modality(group.prefix) is None else []
    fitting = sorted(
        owned or shared,
        key=lambda key: (not key.listed, key.affinity(group.prefix), "text" in words(key.path)),
        reverse=True,
    )
    if not fitting or (run := group.run(fitting[0])) is None:
        return None
    counts = [key.path for key in fitting if not key.listed and (key is fitting[0] or key in owned)]
    return Stack(group.prefix, run[1], next(iter(counts), None), tuple(counts[1:]), fitting[0].config_path, run[0])


def find_stacks(shapes: Mapping[str, Shape], config: Mapping[str, object]) -> tuple[Stack, ...]:
    """Return the stacks of layers, in the order in which their first tensors are named.

    Parameters:
        shapes: shape by tensor name.
        config: the parsed config.json; may be empty.
    """
    groups = [group for group in _groups(shapes) if group.is_candidate()]
    keys = list(count_keys(config))
    owners = {key.path: _owners(key, groups) for key in keys}
    stacks = []
    for group in groups:
        if (stack := _keyed(group, keys, owners)) is not None:
            stacks.append(stack)
        elif len(groups) == 1 or (group.deep and group.repeats):
            stacks.append(Stack(group.prefix, group.height, None))
    return tuple(stacks)
