"""The adapters of a merge, opened: their products module by module, and what cannot be merged without the base."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from mergekit.adapters import CONFIG, Adapter, open_adapter
from mergekit.adapters.names import Parts, read_parts
from mergekit.checkpoint import Stored, read_tensor
from mergekit.checkpoint.finding import read_object
from mergekit.checkpoint.hub import Hub, local_folder
from mergekit.errors import CheckpointError, Findings, IncompatibleModelsError, NonFiniteError, UnsupportedError
from mergekit.layout import align_names
from mergekit.lora.cores import LowRankProduct
from mergekit.plan.views import view_of
from mergekit.recipe import Recipe, Source
from mergekit.report.rooms import Room

_FIRST, _SECOND = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")
_WHY = {
    "lora_magnitude_vector": "give outputs norms of their own (DoRA), which takes the weights of the base",
    "trainable_tokens_delta": "hold rows of the vocabulary, which are no deltas without those of the base",
}
_INSTEAD = "`mergekit yaml` with models BASE+ADAPTER and the base, which makes a whole model"


@dataclass(frozen=True, slots=True)
class ModuleFactors:
    """The factors of a module in one adapter.

    Parameters:
        a, b: where they are.
        bias: the offset of the module's bias, or None.
        scale: of the product and of the offset.
        embedding: whether they are those of an embedding.
    """

    a: Stored
    b: Stored
    bias: Stored | None
    scale: float
    embedding: bool

    @property
    def shape(self) -> tuple[tuple[int, ...], int]:
        """What the product is, apart from its rank: the dimensions of its inputs, and its outputs."""
        return self.a.spec.shape[1:], self.b.spec.shape[0]

    @property
    def rank(self) -> int:
        """Inner dimension."""
        return self.a.spec.shape[0]

    def product(self, room: Room) -> LowRankProduct:
        """The factors as matrices of float32."""
        b, a = read(self.b, room), read(self.a, room)
        return LowRankProduct(b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1), self.scale)


def read(stored: Stored, room: Room) -> np.ndarray[Any, Any]:
    """A tensor of an adapter as float32.

    Raises:
        NonFiniteError: it holds NaN or infinity.
    """
    entries = np.empty(stored.spec.count, np.float32)
    view_of(stored).read(room, 0, entries.size, entries)
    if not np.isfinite(entries).all():
        what = f"`{stored.spec.name}` holds NaN or infinity"
        raise NonFiniteError(what, place=str(stored.extent.file))
    return entries.reshape(stored.spec.shape)


@dataclass(frozen=True, slots=True)
class Member:
    """An adapter of a merge.

    Parameters:
        name: as the recipe has it.
        adapter: its folder.
        factors: by module.
        copies: weights of the base that come with products for them, by name.
    """

    name: str
    adapter: Adapter
    factors: Mapping[str, ModuleFactors]
    copies: Mapping[str, Stored] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, object]:
        """Its adapter_config.json."""
        return read_object(self.adapter.root / CONFIG)

    @property
    def base(self) -> str:
        """Name of its base, as its config has it; empty if there is none."""
        return str(self.settings.get("base_model_name_or_path") or "")


def open_members(recipe: Recipe, findings: Findings, hub: Hub | None = None) -> tuple[Member, ...]:
    """Open the adapters of a recipe; what cannot be opened or merged is an error of the recipe.

    Parameters:
        recipe: for adapters.
        findings: where errors and warnings are recorded.
        hub: how adapters are taken from the hub.

    Raises:
        IncompatibleModelsError: the adapters are for models of other shapes, or for none in common.
    """
    members: list[Member] = []
    for entry in recipe.models:
        found = _opened(recipe, entry, members[0].factors if members else {}, findings, hub)
        members += [found] if found else []
    if len(members) == len(recipe.models):
        _compare(members, findings)
    return tuple(members)


def _opened(
    recipe: Recipe, entry: Source, known: Mapping[str, ModuleFactors], findings: Findings, hub: Hub | None
) -> Member | None:
    try:
        adapter = open_adapter(local_folder(entry.model.model, hub, True))
        parts = read_parts(adapter)
        copies = {name: one for name, one in parts.whole.items() if name.removesuffix(".weight") in parts.modules}
        _refuse(adapter, parts, copies)
        if copies:
            what = f"{len(copies)} weights of the base, which come with products for them, are left out"
            findings.notice(f"{entry.model}: {what}: {next(iter(copies))}")
        return Member(str(entry.model), adapter, _factors(adapter, parts, known), copies)
    except (CheckpointError, UnsupportedError) as error:
        problem = error.problem
        inside = f" in {problem.place}" if problem.place and str(problem.place) != entry.model.model.path else ""
        place = recipe.place(f"{entry.path}.model")
        findings.error(f"{entry.model}: {problem.what}{inside}", place, problem.expected, problem.hint)
        return None


def _factors(adapter: Adapter, parts: Parts, known: Mapping[str, ModuleFactors]) -> dict[str, ModuleFactors]:
    names = align_names(list(parts.modules), list(known)) if known else {}
    return {names.get(module, module): _found(adapter, module, own) for module, own in parts.modules.items()}


def _found(adapter: Adapter, module: str, own: Mapping[str, Stored]) -> ModuleFactors:
    config = adapter.config
    a, b = (next((own[name] for name in pair if name in own), None) for pair in (_FIRST, _SECOND))
    if a is None or b is None or a.spec.shape[0] != config.rank_of(module) or b.spec.shape[1:2] != a.spec.shape[:1]:
        what = f"`{module}` has no two factors of rank {config.rank_of(module)}, which its config says"
        raise CheckpointError(what, place=str(adapter.file))
    bias = own.get("lora_B.bias") if config.biased else None
    return ModuleFactors(a, b, bias, config.scale_of(module), "lora_embedding_A" in own)


def _refuse(adapter: Adapter, parts: Parts, copies: Collection[str]) -> None:
    for part, why in _WHY.items():
        if any(part in own for own in parts.modules.values()):
            what = f"tensors `{part}` {why}: they cannot be merged without it"
            raise UnsupportedError(what, place=str(adapter.file), hint=_INSTEAD)
    whole = [name for name in parts.whole if name not in copies]
    if whole:
        what = f"{len(whole)} tensors are held whole, which are no deltas without the base, such as {whole[0]}"
        raise UnsupportedError(what, place=str(adapter.file), hint=_INSTEAD)
    if adapter.config.parameters:
        what = "`target_parameters` have products for many experts at a time, which are not merged here"
        raise UnsupportedError(what, place=str(adapter.file), hint=_INSTEAD)


def _compare(members: Sequence[Member], findings: Findings) -> None:
    first, *others = members
    for other in others:
        shared = [module for module in other.factors if module in first.factors]
        if not shared:
            what = f"{first.name} and {other.name} change no module in common"
            hint = f"`{next(iter(first.factors))}` and `{next(iter(other.factors))}` have other names"
            findings.warn(what, hint=hint)
    shapes: dict[str, tuple[object, str]] = {}
    for member in members:
        for module, factors in member.factors.items():
            shape, name = shapes.setdefault(module, (factors.shape, member.name))
            if shape != factors.shape:
                raise IncompatibleModelsError(
                    f"`{module}` is {list(_lines(factors))} in {member.name}, and another shape in {name}",
                    expected="adapters for one base",
                )
    bases = {member.base: member.name for member in members if member.base}
    if len(bases) > 1:
        listed = " and ".join(f"{name} for {base}" for base, name in bases.items())
        findings.warn(f"the adapters say that they are for different models: {listed}")


def _lines(factors: ModuleFactors) -> tuple[int, ...]:
    return (factors.b.spec.shape[0], *factors.a.spec.shape[1:])


def refuse_other_bases(members: Sequence[Member]) -> None:
    """Compare the weights of the base that come with adapters.

    Parameters:
        members: the adapters.

    Raises:
        IncompatibleModelsError: they are not the same in all adapters that have them.
    """
    found: dict[str, tuple[bytes, str]] = {}
    for member in members:
        for name, stored in member.copies.items():
            content = sha256(read_tensor(stored).tobytes()).digest()
            known, first = found.setdefault(name, (content, member.name))
            if content != known:
                what = f"`{name}`, a weight of the base, is not the same in {first} and {member.name}"
                raise IncompatibleModelsError(what, expected="adapters for one base")
