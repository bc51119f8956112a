"""The modules of a model, and in which form an adapter can hold what a fine-tune did to each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mergekit.adapters import FUSED, inputs_first, square_experts_inputs_first
from mergekit.checkpoint import TensorSpec
from mergekit.lora.pairs import Pair, Pairs

Form = Literal["linear", "embedding", "convolution", "experts", "vocabulary", "whole"]
"""How a module is held.

`linear` is a product for a matrix, `embedding` one for rows of tokens, `convolution` one whose factors have a kernel's
dimensions, `experts` one for each expert of a fused tensor; `vocabulary` is a tensor of the fine-tune, or those of its
rows that changed; `whole` a tensor as it is there.
"""

_NUMBERED = re.compile(r"(?P<container>.*\bexperts)\.\d+\..+")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which modules an adapter is to hold, and how.

    Parameters:
        embed_lora: decompose embeddings and head, too.
        save: modules that are held whole, by their last name or their full one.
        include: only modules that one of these is found in; all if there is none.
        exclude: no module that one of these is found in.
        skip_whole: leave out modules that cannot be decomposed, instead of holding them whole.
    """

    embed_lora: bool = False
    save: tuple[str, ...] = ()
    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()
    skip_whole: bool = False

    def idle(self, modules: Sequence[str]) -> Iterator[str]:
        """What is said about modules and is about none of them, as users say it."""
        named = {*modules, *(module.rpartition(".")[2] for module in modules)}
        yield from (f"--save-module {name}" for name in self.save if name not in named)
        for flag, patterns in (("--include-regex", self.include), ("--exclude-regex", self.exclude)):
            for pattern in patterns:
                if not any(pattern.search(module) for module in modules):
                    yield f"{flag} {pattern.pattern}"

    def saves(self, module: str) -> bool:
        """Whether a module is asked for whole."""
        return module in self.save or module.rpartition(".")[2] in self.save

    def admits(self, module: str) -> bool:
        """Whether a module is not excluded."""
        included = not self.include or any(pattern.search(module) for pattern in self.include)
        return included and not any(pattern.search(module) for pattern in self.exclude)


@dataclass(frozen=True, slots=True)
class Unit:
    """A module, or a fused tensor of experts.

    Parameters:
        module: its name, as peft knows it; that of the parameter if there is no module to it.
        form: how it is held.
        weight: the tensor.
        bias: of the same module, or None.
        group: of the experts it belongs to, which all have one rank; empty for none.
        inputs_first: whether its matrices are stored as (in, out).
    """

    module: str
    form: Form
    weight: Pair
    bias: Pair | None = None
    group: str = ""
    inputs_first: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return self.weight.nbytes + (self.bias.nbytes if self.bias else 0)

    @property
    def matrix(self) -> tuple[int, int, int]:
        """How many matrices are decomposed, their outputs and their inputs; (0, 0, 0) if none is."""
        shape = self.weight.shape
        if self.form in ("vocabulary", "whole"):
            return 0, 0, 0
        count, *lines = shape if self.form == "experts" else (1, *shape)
        first, second = lines[0], self.weight.tuned.spec.count // max(1, count * lines[0])
        return (count, second, first) if self.inputs_first else (count, first, second)


@dataclass(frozen=True, slots=True)
class Division:
    """What becomes of every tensor.

    Parameters:
        units: what the adapter may hold, in the order of the base.
        left_out: names of tensors that it does not, by the reason.
    """

    units: tuple[Unit, ...]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def divide(pairs: Pairs, choice: Choice) -> Division:
    """Decide for every module how an adapter holds it; no weight is read.

    Parameters:
        pairs: the models.
        choice: what the user wants.
    """
    weights = {pair.name.removesuffix(".weight"): pair for pair in pairs.tensors if pair.name.endswith(".weight")}
    biases = {pair.name.removesuffix(".bias"): pair for pair in pairs.tensors if pair.name.endswith(".bias")}
    for said in choice.idle(list(weights)):
        pairs.findings.warn(f"`{said}` has no effect: no module is called so")
    containers = {match["container"] for module in weights if (match := _NUMBERED.fullmatch(module))}
    left_out = {reason: list(names) for reason, names in pairs.left_out.items()}
    units: list[Unit] = []
    specs = {view.spec.name: view.spec for view in pairs.base.views.values()}
    embedding = pairs.base.embedding
    width = embedding.spec.shape[-1] if embedding else 0
    flipped = square_experts_inputs_first(pairs.base.checkpoint.config)
    sort = _Sort(choice, containers, specs)
    for pair in pairs.tensors:
        stem, _, leaf = pair.name.rpartition(".")
        if leaf == "bias" and stem in weights:
            continue
        own = leaf == "weight"
        unit = sort.unit(stem, pair, biases.get(stem)) if own else _experts(pair, width, flipped)
        reason = sort.reason(unit) if unit else "they are neither the weight nor the bias of a module"
        if unit and not reason:
            units.append(unit)
        else:
            left_out.setdefault(reason or "", []).append(pair.name)
    return Division(tuple(units), {reason: tuple(names) for reason, names in left_out.items()})


def _experts(pair: Pair, width: int, flipped: bool) -> Unit | None:
    """Fused experts, if a tensor is that; one dimension of theirs is that of the model."""
    stem, _, leaf = pair.name.rpartition(".")
    if leaf not in FUSED or "expert" not in stem or len(pair.shape) != 3:
        return None
    lines, columns = pair.shape[1:]
    inputs, outputs = (columns, lines) if leaf == FUSED[0] else (lines, columns)
    if inputs != outputs and width in (inputs, outputs):
        flipped = width == outputs
    return Unit(pair.name, "experts", pair, inputs_first=flipped)


@dataclass(frozen=True, slots=True)
class _Sort:
    choice: Choice
    containers: set[str]
    specs: Mapping[str, TensorSpec]

    def unit(self, module: str, pair: Pair, bias: Pair | None) -> Unit:
        if self.choice.saves(module):
            return Unit(module, "whole", pair, bias)
        numbered = _NUMBERED.fullmatch(module)
        group = numbered["container"] if numbered else ""
        if pair.part == "router" and f"{module.rpartition('.')[0]}.experts" in self.containers:
            group = f"{module.rpartition('.')[0]}.experts"
        form = self._form(pair, bool(group))
        told = form == "linear" and bool(inputs_first(pair.base.spec.name, self.specs))
        return Unit(module, form, pair, bias, group, told or form == "embedding")

    def reason(self, unit: Unit) -> str | None:
        """Why a unit is left out, or None."""
        if unit.form == "whole" and self.choice.saves(unit.module):
            return None
        if not self.choice.admits(unit.module):
            return "they are excluded"
        return "they cannot be decomposed" if unit.form == "whole" and self.choice.skip_whole else None

    def _form(self, pair: Pair, grouped: bool) -> Form:
        dimensions, alike = len(pair.shape), pair.base.spec.shape == pair.shape
        if pair.place.role in ("embedding", "head") and not (self.choice.embed_lora and alike and dimensions == 2):
            return "vocabulary"
        if pair.part in ("embedding", "positions") and dimensions == 2:
            return "embedding" if self.choice.embed_lora else "whole"
        if pair.part == "norm" or (pair.part == "router" and not grouped):
            return "whole"
        if dimensions == 2:
            return "linear"
        convolves = dimensions == 4 or (dimensions == 3 and "conv" in pair.name)
        return "convolution" if convolves and pair.shape[1] > 1 else "whole"


def grouped(units: Sequence[Unit]) -> Iterator[list[int]]:
    """The indices of units that belong to the experts of one layer, layer by layer."""
    found: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        if unit.group:
            found.setdefault(unit.group, []).append(index)
    yield from found.values()
