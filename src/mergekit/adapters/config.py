"""adapter_config.json: how strongly an adapter acts, and what it may not ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit.checkpoint.finding import read_object
from mergekit.errors import CheckpointError, Place, UnsupportedError

_REFUSED = {
    "alora_invocation_tokens": "acts only behind certain tokens, which no fixed weights do",
    "arrow_config": "chooses among adapters token by token, which no fixed weights do",
    "kasa_config": "cuts the base's own weights down by a decomposition first",
    "layer_replication": "repeats layers of the base: slices of the recipe do that",
    "megatron_config": "is for weights that Megatron has cut into parts",
    "monteclora_config": "draws its weights at random",
    "use_bdlora": "has factors in diagonal blocks",
    "use_qalora": "has factors for groups of inputs",
}
"""Settings that change what the tensors mean, and why this version does not follow them."""

_INITIAL = {"", "true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}
"""Ways of beginning a training (`init_lora_weights`) that leave the base's weights as they are."""

_LONGEST = 128  # characters of a module's name, from its end, that patterns are held against
_STEPS = 10**8  # of matching: about a second
_WRAPPED = r"(.*\.)?({})$"


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The settings of a LoRA adapter that say what its tensors mean.

    Parameters:
        rank: inner dimension of its products.
        alpha: numerator of their scale.
        ranks: other ranks, by a pattern for the end of a module's name; the first that matches counts.
        alphas: other numerators, likewise.
        root_scaled: whether the scale is alpha/√rank (rsLoRA) instead of alpha/rank.
        dora: whether outputs get norms of their own (DoRA).
        biased: whether products come with a bias (`lora_bias`).
        inputs_first: whether matrices are stored transposed, where nothing else tells (`fan_in_fan_out`).
        tokens: rows that are trained, by the end of a module's name; "" for any module.
        parameters: those with products that are no weights of modules, by the end of their names.
    """

    rank: int
    alpha: float
    ranks: Mapping[re.Pattern[str], int]
    alphas: Mapping[re.Pattern[str], float]
    root_scaled: bool
    dora: bool
    biased: bool
    inputs_first: bool
    tokens: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        """Rank of the product for a module."""
        end = module[-_LONGEST:]
        return next((rank for pattern, rank in self.ranks.items() if pattern.match(end)), self.rank)

    def scale_of(self, module: str) -> float:
        """Factor of the product for a module."""
        end = module[-_LONGEST:]
        alpha = next((alpha for pattern, alpha in self.alphas.items() if pattern.match(end)), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.root_scaled else alpha / rank

    def tokens_of(self, module: str) -> tuple[int, ...] | None:
        """Rows of a module that are trained, or None."""
        keys = (key for key in self.tokens if not key or module == key or module.endswith(f".{key}"))
        return next((self.tokens[key] for key in keys), None)


@dataclass(frozen=True, slots=True)
class _Settings:
    """The file, with what is wrong about a value said at its place."""

    file: Path
    values: Mapping[str, Any]

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """The error about a value."""
        what = f"`{key}` of the adapter is {_shown(self.values.get(key))}"
        return CheckpointError(what, place=Place(key, str(self.file)), expected=expected)

    def flag(self, key: str) -> bool:
        """True or false; false if it is not there."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return bool(value)

    def rank(self) -> int:
        """`r`."""
        value = self.values.get("r", 8)  # the default of peft
        if not _is_rank(value):
            raise self.wrong("r", "a whole number of at least 1")
        return int(value)

    def alpha(self) -> float:
        """`lora_alpha`."""
        value = self.values.get("lora_alpha", 8)
        if not _is_number(value):
            raise self.wrong("lora_alpha", "a finite number")
        return float(value)

    def patterns(self, key: str, ranks: bool) -> dict[re.Pattern[str], Any]:
        """A map of patterns for names of modules to ranks, or to other numbers."""
        value = self.values.get(key) or {}
        valid = _is_rank if ranks else _is_number
        if not isinstance(value, dict) or not all(valid(number) for number in value.values()):
            numbers = "whole numbers of at least 1" if ranks else "finite numbers"
            raise self.wrong(key, f"patterns for names of modules, and {numbers}")
        if endless := next((pattern for pattern in value if _may_take_forever(pattern)), None):
            raise self.wrong(key, f"patterns that are matched at once, unlike {_shown(endless)}")
        try:
            return {re.compile(_WRAPPED.format(pattern)): number for pattern, number in value.items()}
        except (re.error, OverflowError, RecursionError) as error:
            raise self.wrong(key, f"patterns that Python's `re` can read ({error})") from error

    def parameters(self) -> tuple[str, ...]:
        """`target_parameters`."""
        value = self.values.get("target_parameters") or []
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            raise self.wrong("target_parameters", "names of parameters")
        return tuple(value)

    def tokens(self) -> dict[str, tuple[int, ...]]:
        """`trainable_token_indices`: a list, or one for each module."""
        key = "trainable_token_indices"
        value = self.values.get(key) or {}
        lists = {"": value} if isinstance(value, list) else value
        if not isinstance(lists, dict) or not all(_are_indices(indices) for indices in lists.values()):
            raise self.wrong(key, "token ids, each once")
        return {module: tuple(indices) for module, indices in lists.items()}


def _may_take_forever(pattern: str) -> bool:
    """Whether a pattern may be one over which Python's `re` tries out more than can be waited for.

    Repeated groups and references back are refused, which no pattern for names of modules needs. Without them the ways
    to match are the places where each repetition may end, times the choices of each group.
    """
    if len(pattern) > 1000 or re.search(r"\\[1-9]|\(\?(?!:)", pattern):
        return True
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern.replace("(?:", "("))
    if re.search(r"\)[*+{]", plain):
        return True
    repeated = 1 + len(re.findall(r"[*+?{]", plain))  # and one before every pattern
    choices = math.prod(1 + part.count("|") for part in re.split(r"[()]", plain))
    return bool(_LONGEST**repeated * choices > _STEPS * math.factorial(repeated))


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value < 1 << 31


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _are_indices(value: object) -> bool:
    if not isinstance(value, list) or not all(type(index) is int and index >= 0 for index in value):
        return False
    return len(set(value)) == len(value)


def _shown(value: object, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def read_lora_config(file: Path) -> LoraConfig:
    """Read the settings of a LoRA adapter.

    Parameters:
        file: its adapter_config.json.

    Raises:
        CheckpointError: the file is not JSON, or a value is impossible.
        UnsupportedError: it is an adapter of another kind, or asks for what cannot be put into weights.
    """
    settings = _Settings(file, read_object(file))
    _refuse(settings)
    return LoraConfig(
        rank=settings.rank(),
        alpha=settings.alpha(),
        ranks=settings.patterns("rank_pattern", ranks=True),
        alphas=settings.patterns("alpha_pattern", ranks=False),
        root_scaled=settings.flag("use_rslora"),
        dora=settings.flag("use_dora"),
        biased=settings.flag("lora_bias"),
        inputs_first=settings.flag("fan_in_fan_out"),
        tokens=settings.tokens(),
        parameters=settings.parameters(),
    )


def _refuse(settings: _Settings) -> None:
    kind = settings.values.get("peft_type")
    if not isinstance(kind, str):
        raise settings.wrong("peft_type", "LORA")
    if kind != "LORA":
        raise UnsupportedError(
            f"the adapter is of the kind {_shown(kind)}, which this version does not read",
            place=Place("peft_type", str(settings.file)),
            expected="LORA",
            hint="merging it into its base with `peft` first, if its kind can be merged",
        )
    for key, reason in _REFUSED.items():
        if settings.values.get(key):
            what = f"`{key}` of the adapter {reason}; this version does not follow it"
            raise UnsupportedError(what, place=Place(key, str(settings.file)))
    initial = settings.values.get("init_lora_weights", "")
    if str(initial).lower() not in _INITIAL:
        raise UnsupportedError(
            f"the adapter belongs to a base whose weights were changed when its training began ({_shown(initial)})",
            place=Place("init_lora_weights", str(settings.file)),
            hint="peft's `save_pretrained` with `path_initial_model_for_weight_conversion`: it makes a plain LoRA",
        )
