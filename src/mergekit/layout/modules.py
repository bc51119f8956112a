"""Name the modules of a model and say which one holds a tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mergekit.layout.overlay import overlay
from mergekit.layout.parts import PREDICTION, ModuleLayout, Stack
from mergekit.layout.vocabulary import embeds_tokens
from mergekit.layout.words import is_projector, modality, predicts_further, words

_PROJECTOR = "multi_modal_projector"
_SHARED = "shared"
_ALIASES = {
    "text_decoder": ("language_model", "text_model"),
    "vision_tower": ("vision_model", "visual"),
    "audio_tower": ("audio_model",),
}


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of one model.

    Parameters:
        towers: the modules that have a stack; a model without layers has one without.
        main: the language model among `towers`.
        loose: modules without a stack: projector, shared, multi-token prediction.
    """

    towers: tuple[ModuleLayout, ...]
    main: ModuleLayout
    loose: tuple[ModuleLayout, ...]

    def home(self, name: str) -> ModuleLayout:
        """Return the module of a tensor that is in no layer.

        It is the one whose stack shares the longest dotted prefix with the name, then the one whose modality the name
        mentions, then the language model.
        """
        if predicts_further(name) and (prediction := self.loose_one(PREDICTION)):
            return prediction
        if len(self.towers) == 1:
            return self.main
        projector, shared = (self.loose_one(kind) for kind in (_PROJECTOR, _SHARED))
        if projector and _joins(name):
            return projector
        kinship = {tower: _kinship(name, tower) for tower in self.towers}
        if shared and len(set(kinship.values())) == 1:
            return shared
        return max(self.towers, key=lambda tower: (kinship[tower], tower is self.main))

    def loose_one(self, kind: str) -> ModuleLayout | None:
        """Return the module of a name among those without a stack."""
        return next((module for module in self.loose if module.name == kind), None)


def _joins(name: str) -> bool:
    return is_projector(name) or not overlay().projector.isdisjoint(name.split("."))


def _kinship(name: str, tower: ModuleLayout) -> tuple[int, bool]:
    prefix = tower.stack.prefix if tower.stack else ""
    kind = modality(name)
    return shared_components(name, prefix), kind is not None and kind == modality(prefix)


def shared_components(name: str, prefix: str) -> int:
    """Count the leading dotted components that a tensor name and a stack's prefix have in common.

    Example:
        >>> shared_components("model.norm.weight", "model.layers")
        1
    """
    count = 0
    for mine, other in zip(name.split(".")[:-1], prefix.split("."), strict=False):
        if mine != other:
            break
        count += 1
    return count


def _main(stacks: tuple[Stack, ...], embeddings: Iterable[str]) -> Stack:
    """The language stack: no tower; called text; next to the token embedding; a decoder; then the tallest."""
    names = list(embeddings)
    return max(
        stacks,
        key=lambda stack: (
            modality(stack.prefix) is None,
            "text" in words(stack.prefix),
            -min((_distance(stack.prefix, name) for name in names), default=0),
            "decoder" in words(stack.prefix),
            stack.count,
        ),
    )


def _distance(prefix: str, name: str) -> int:
    return len(prefix.split(".")) - shared_components(name, prefix)


def _stem(stack: Stack, main: Stack, multimodal: bool) -> str:
    kind = modality(stack.prefix)
    if kind is not None:
        return f"{kind}_tower"
    said = words(stack.prefix)
    if stack is main and (multimodal or ("text" in said and "decoder" not in said)):
        return "text_decoder"
    sides = (side for side in ("decoder", "encoder") if side in said and not multimodal)
    return next(sides, stack.prefix)


def name_modules(stacks: tuple[Stack, ...], loose_names: Iterable[str], behind: bool) -> Modules:
    """Name one module per stack, and those that the tensors outside of all stacks ask for.

    Parameters:
        stacks: all stacks of the model.
        loose_names: names of the tensors that are in no layer.
        behind: whether there are layers behind those of a stack, which predict further tokens.
    """
    names = list(loose_names)
    predicting = behind or any(map(predicts_further, names))
    prediction = [ModuleLayout(PREDICTION, ("mtp", "nextn"), None)] if predicting else []
    if len(stacks) <= 1:
        only = ModuleLayout("default", tuple(stack.prefix for stack in stacks), stacks[0] if stacks else None)
        return Modules((only,), only, tuple(prediction))
    main, towers = _main(stacks, filter(embeds_tokens, names)), dict[str, ModuleLayout]()
    multimodal = any(modality(stack.prefix) for stack in stacks)
    for stack in sorted(stacks, key=lambda stack: stack is not main):
        stem = _stem(stack, main, multimodal)
        name = stack.prefix if stem in towers else stem
        aliases = (stack.prefix, *_ALIASES.get(name, ())) if name != stack.prefix else ()
        towers[name] = ModuleLayout(name, aliases, stack)
    loose = [ModuleLayout(_PROJECTOR, (), None)] if any(map(_joins, names)) else []
    if not multimodal and any(_SHARED in name.split(".") for name in names):
        loose.append(ModuleLayout(_SHARED, (), None))
    return Modules(tuple(towers.values()), next(iter(towers.values())), (*loose, *prediction))
