"""A base and a fine-tune of it, opened: their tensors side by side, by the names that peft has for modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from mergekit.checkpoint import TensorSpec
from mergekit.checkpoint.hub import Hub
from mergekit.errors import CheckpointError, Findings
from mergekit.layout import Part, derived_buffer
from mergekit.plan import VOCABULARY, Model
from mergekit.plan.models import Key, open_models
from mergekit.plan.tensors import MERGEABLE
from mergekit.plan.views import InPlace, View
from mergekit.recipe import ModelRef, read_recipe
from mergekit.report.parts import part_of

_SKELETONS = {"h": "transformer.", "layers": "model.", "decoder": "model."}
"""What a model with a head puts before the names of a checkpoint that was saved without one, by their first word."""

_HEADS = ("head", "head_bias")
_HEADED = re.compile(r"For[A-Z]\w*$|LMHeadModel$")


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of both models.

    Parameters:
        name: as the model with its head calls it.
        base: in the base.
        tuned: in the fine-tune; it may have another number of rows.
        place: in the layout of the base.
        part: what it is for, as in :data:`mergekit.report.parts.PARTS`.
    """

    name: str
    base: View
    tuned: View
    place: Part
    part: str

    @property
    def shape(self) -> tuple[int, ...]:
        """In the fine-tune."""
        return self.tuned.spec.shape

    @property
    def nbytes(self) -> int:
        """Bytes that are read of both."""
        return self.base.nbytes + self.tuned.nbytes


@dataclass(frozen=True, slots=True)
class Pairs:
    """A base and a fine-tune of it.

    Parameters:
        base, tuned: the models.
        tensors: those that both have, in the order of the base.
        left_out: names of tensors that no adapter can hold, by the reason.
        findings: warnings and notices for the user.
    """

    base: Model
    tuned: Model
    tensors: tuple[Pair, ...]
    left_out: Mapping[str, tuple[str, ...]]
    findings: Findings


def open_pairs(base: ModelRef, tuned: ModelRef, hub: Hub | None = None) -> Pairs:
    """Open a base and a fine-tune of it; no weight is read.

    Parameters:
        base: the model that the adapter is for; any that recipes can name.
        tuned: the fine-tune, likewise.
        hub: how models are taken from the hub.

    Raises:
        CheckpointError: a model cannot be read.
        UnsupportedError: a model is quantised in a way that is not read.
    """
    findings = Findings()
    models = _opened((base, tuned), findings, hub)
    first, second = models[0], models[-1]
    left_out: dict[str, list[str]] = {}
    pairs = tuple(_paired(first, second, _prefix(first), left_out))
    return Pairs(first, second, pairs, {reason: tuple(names) for reason, names in left_out.items()}, findings)


def _opened(refs: Sequence[ModelRef], findings: Findings, hub: Hub | None) -> tuple[Model, ...]:
    text = yaml.safe_dump({"merge_method": "linear", "models": [{"model": ref.written()} for ref in refs]})
    recipe, found = read_recipe(text, vocabulary=VOCABULARY)
    assert recipe is not None, found
    models = open_models(recipe, findings, hub=hub)
    for problem in findings.errors:
        raise CheckpointError(problem.what, expected=problem.expected, hint=problem.hint)
    return models


def _paired(base: Model, tuned: Model, prefix: str, left_out: dict[str, list[str]]) -> Iterator[Pair]:
    for key in dict.fromkeys([*base.views, *tuned.views]):
        part = base.part(key) or tuned.part(key)
        assert part is not None, "every tensor has a place"
        name = (base if key in base.views else tuned).own_name(key)
        name = name if part.role in _HEADS else prefix + name
        if part.role == "head" and base.tied and tuned.tied:
            continue  # loaders take the embedding
        one, other = _view(base, key, part), _view(tuned, key, part)
        if derived_buffer(name, (one or other or tuned.views[key]).spec.shape):
            continue
        reason = _reason(part, one, other)
        if one is None or other is None or reason:
            left_out.setdefault(reason or "", []).append(name)
        else:
            yield Pair(name, one, other, part, part_of(part))


def _view(model: Model, key: Key, part: Part) -> View | None:
    """The tensor at a place; where the embedding serves as head, that."""
    found, embedding = model.views.get(key), model.embedding
    if part.role == "head" and model.tied and embedding is not None:
        name = found.spec.name if found else key[2]
        return InPlace(embedding, TensorSpec(name, embedding.spec.dtype, embedding.spec.shape), embedding.names)
    return found


def _reason(part: Part, one: View | None, other: View | None) -> str | None:
    """Why an adapter cannot hold what was done to a tensor; None if it can."""
    if one is None or other is None:
        return "only the fine-tune has them" if one is None else "only the base has them"
    if not {one.spec.dtype.name, other.spec.dtype.name} <= MERGEABLE:
        return "they do not hold floating-point numbers"
    if one.spec.shape == other.spec.shape:
        return None
    rows = part.vocab_axis == 0 and one.spec.shape[1:] == other.spec.shape[1:]
    return None if rows else "they have other shapes in the fine-tune"


def _prefix(base: Model) -> str:
    """What a model with a head puts before the base's names of tensors."""
    stack = base.layout.main.stack
    architectures = base.checkpoint.config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    if stack is None or not isinstance(first, str) or not _HEADED.search(first):
        return ""
    return _SKELETONS.get(stack.prefix.partition(".")[0], "")
