"""The types that say what a model is: parts, stacks of layers, modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Side: TypeAlias = Literal["pre", "layer", "post"]
Role: TypeAlias = Literal["embedding", "head", "head_bias"]

PREDICTION = "multi_token_prediction"
"""Name of the module that predicts tokens beyond the next one; it may have an embedding and a head of its own."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where one tensor belongs.

    Parameters:
        module: name of the :class:`ModuleLayout` that holds it.
        layer: number of its layer, from 0; None outside the stack.
        suffix: its name after ``<prefix>.<layer>.``; outside the stack its full name.
        side: before the stack, in it, or after it. A sliced merge takes "pre" from the first and "post" from the
            last slice.
        role: what it does for the vocabulary, if it does.
        vocab_axis: the axis that counts tokens of the vocabulary, or None.
    """

    module: str
    layer: int | None
    suffix: str
    side: Side
    role: Role | None
    vocab_axis: int | None


@dataclass(frozen=True, slots=True)
class Stack:
    """A run of equal layers, numbered in the tensor names.

    Parameters:
        prefix: what stands before the number, without the dot: ``model.layers``.
        count: number of layers; multi-token-prediction layers behind the last one are not counted.
        count_key: dotted path of the config.json entry that holds `count`, or None where there is none.
        same_count_keys: further entries that mean the same number (Whisper's ``num_hidden_layers``).
        config_path: dotted path of the sub-config that describes the layers; empty for config.json itself.
        first: number in the tensor names that layer 0 carries; not 0 only where an embedding is numbered too (phi-1).

    Example:
        >>> Stack("model.layers", 32, "num_hidden_layers").name(3, "mlp.up_proj.weight")
        'model.layers.3.mlp.up_proj.weight'
    """

    prefix: str
    count: int
    count_key: str | None
    same_count_keys: tuple[str, ...] = ()
    config_path: str = ""
    first: int = 0

    def name(self, layer: int, suffix: str) -> str:
        """Return the tensor name of `suffix` in layer `layer` (from 0)."""
        return f"{self.prefix}.{layer + self.first}.{suffix}"


@dataclass(frozen=True, slots=True)
class ModuleLayout:
    """A part of the model that recipes address by name: the language model, a vision tower, a projector.

    Parameters:
        name: the name used in reports.
        aliases: other names a recipe may use; the stack's prefix is one.
        stack: its layers, or None.
    """

    name: str
    aliases: tuple[str, ...]
    stack: Stack | None


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model is: its modules, and the place of every tensor.

    Parameters:
        modules: all modules, those with a stack first.
        parts: the place of each tensor, by tensor name, in the order in which the names were given.
        vocab_key: dotted path of the config.json entry that holds the vocabulary size, or None.
        tied: True if the output head is the embedding matrix and loaders ignore a head tensor.
        main: the language stack's module, which a recipe's top-level ``slices`` cuts: the only one, or the text
            model beside a vision or audio tower, or the decoder beside an encoder.
    """

    modules: tuple[ModuleLayout, ...]
    parts: Mapping[str, Part]
    vocab_key: str | None
    tied: bool
    main: ModuleLayout

    def module(self, name: str) -> ModuleLayout | None:
        """Return the module of that name or alias, or None."""
        for module in self.modules:
            if name == module.name or name in module.aliases:
                return module
        return None

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks of all modules that have layers."""
        return tuple(module.stack for module in self.modules if module.stack)

    @property
    def embedding(self) -> str | None:
        """Name of the input embedding (of encoder and decoder: the shared one), or None."""
        names = [name for name, part in self.parts.items() if part.role == "embedding"]
        order = ("shared", self.main.name)
        return min(
            names,
            key=lambda name: (
                self.parts[name].side == "post",
                order.index(self.parts[name].module) if self.parts[name].module in order else len(order),
            ),
            default=None,
        )

    @property
    def head(self) -> str | None:
        """Name of the output projection to the vocabulary, or None where the checkpoint has none."""
        names = [name for name, part in self.parts.items() if part.role == "head" and part.module != PREDICTION]
        return min(names, key=lambda name: (any(map(str.isdigit, name.split("."))), name.count(".")), default=None)

    def renumbered(self, name: str, counts: Mapping[str, int]) -> str:
        """Return what tensor `name` is called in a model whose stacks have other heights.

        Only tensors that are numbered behind the last layer change their name: multi-token-prediction layers, and
        phi-1's head.

        Parameters:
            name: a tensor of this layout that is not part of a layer.
            counts: new number of layers by module name; modules that are not named keep theirs.
        """
        for module in self.modules:
            stack = module.stack
            if stack and module.name in counts and self.parts[name].side == "post":
                number, _, rest = name.removeprefix(f"{stack.prefix}.").partition(".")
                if number.isdigit() and name.startswith(stack.prefix):
                    return stack.name(int(number) - stack.first + counts[module.name] - stack.count, rest)
        return name
