"""What becomes of tensors that some models lack or have in another shape, by the rules of the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mergekit.errors import Findings, IncompatibleModelsError, MissingTensorError
from mergekit.layout import derived_buffer
from mergekit.methods import Method
from mergekit.plan.compatibility import incompatible
from mergekit.plan.models import Key, Model
from mergekit.plan.segments import Input, Segment
from mergekit.plan.tasks import Treated
from mergekit.plan.views import Joined, Pieces, View, corner
from mergekit.recipe import Recipe, evaluate

_SHOWN = 3  # tensors named in one remark
_MISSING_HINT = (
    "`on_missing: base`, which takes the base's tensor where a model has none, or `on_missing: skip`, which merges "
    "those of the others"
)
_SHAPE_HINT = "`on_shape_mismatch: base`, which takes the base's tensor where shapes differ"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that may go into an output tensor.

    Parameters:
        entry: the model's part in the segment.
        key: the tensor's place in the model.
        view: the tensor.
    """

    entry: Input
    key: Key
    view: View


@dataclass(frozen=True, slots=True)
class Settled:
    """What an output tensor is made of.

    Parameters:
        candidates: tensors of one shape, at least one.
        whole: whether it is one tensor, which is taken as it is.
    """

    candidates: tuple[Candidate, ...]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _Remark:
    """What a rule has done, in words that are the same for many tensors."""

    kind: Literal["notice", "warning", "error"]
    rule: str
    what: str


def rule_for(recipe: Recipe, key: str, name: str) -> str:
    """The word that holds for an output tensor under a key of the recipe; ``error`` if none does."""
    setting = recipe.rules.get(key)
    return str((setting and evaluate(setting, name, 0.0, "str")) or "error")


def _shape(candidate: Candidate, free: int | None) -> tuple[int, ...]:
    """The shape, but for the length of the free axis."""
    return tuple(-1 if axis == free else size for axis, size in enumerate(candidate.view.spec.shape))


def _has_corner(view: View) -> bool:
    """Whether the first entries of a tensor are of one kind: those of several tensors in one are not."""
    several = isinstance(view, Joined) or (isinstance(view, Pieces) and len(view.pieces) > 1)
    return not several and view.spec.dtype.bits % 8 == 0


def _kept(candidate: Candidate, least: Sequence[int], free: int | None) -> tuple[int, ...]:
    """The shape of a corner, as long as the candidate along the free axis."""
    return tuple(candidate.view.spec.shape[axis] if axis == free else size for axis, size in enumerate(least))


@dataclass(slots=True)
class Tolerance:
    """Applies the rules of a recipe to one output tensor after the other, and collects what they did.

    Parameters:
        recipe: with the rules.
        method: of the merge.
        models: all models.
        findings: where it is told.
        dropped: names of tensors that are in no output, by model and reason.
    """

    recipe: Recipe
    method: type[Method]
    models: Sequence[Model]
    findings: Findings
    dropped: dict[tuple[int, str], list[str]] = field(default_factory=dict)
    _missing: dict[int, list[str]] = field(default_factory=dict)
    _unequal: list[str] = field(default_factory=list)
    _remarks: dict[_Remark, list[str]] = field(default_factory=dict)

    def settle(
        self,
        name: str,
        segment: Segment,
        found: Sequence[Candidate],
        lacking: Sequence[tuple[Input, Key]],
        free: int | None = None,
    ) -> Settled | None:
        """Say what an output tensor is made of; None if it is not written, or cannot be.

        Parameters:
            name: of the output tensor.
            segment: where it belongs.
            found: the tensors that there are, in the order of the segment's inputs.
            lacking: the other inputs, with the places where they have no tensor.
            free: an axis along which shapes may differ, because they will be made equal.
        """
        settled: Settled | None = Settled(tuple(found))
        if lacking:
            settled = self._despite_missing(name, segment, found, lacking)
        if settled and len({_shape(one, free) for one in settled.candidates}) > 1:
            settled = self._despite_shapes(name, segment, settled.candidates, free)
        return settled

    def _despite_missing(
        self, name: str, segment: Segment, found: Sequence[Candidate], lacking: Sequence[tuple[Input, Key]]
    ) -> Settled | None:
        if reason := derived_buffer(name, found[0].view.spec.shape if found else ()):
            self._drop(found, reason)
            return None
        rule = rule_for(self.recipe, "on_missing", name)
        absent = self._listed(entry for entry, _ in lacking)
        if rule == "base":
            return self._base_alone("on_missing: base", name, segment, found, f"not there in {absent}")
        if rule == "skip":
            return self._enough("on_missing: skip", name, segment, found, f"merged without {absent}")
        for entry, key in lacking:
            self._missing.setdefault(entry.model, []).append(self.models[entry.model].own_name(key))
        return None

    def _despite_shapes(
        self, name: str, segment: Segment, found: Sequence[Candidate], free: int | None
    ) -> Settled | None:
        rule, base = rule_for(self.recipe, "on_shape_mismatch", name), self._base(segment)
        standard = next((one for one in found if one.entry is base), found[0])
        kept = [one for one in found if _shape(one, free) == _shape(standard, free)]
        others = [one for one in found if _shape(one, free) != _shape(standard, free)]
        unlike = self._listed(one.entry for one in others)
        if rule == "base":
            return self._base_alone("on_shape_mismatch: base", name, segment, found, f"of another shape in {unlike}")
        if rule == "skip":
            self._drop(others, "`on_shape_mismatch: skip`: its shape is not that of the base")
            without = f"merged without {unlike}, of another shape there"
            return self._enough("on_shape_mismatch: skip", name, segment, kept, without)
        return self._cropped(name, found, free, rule == "crop")

    def _cropped(self, name: str, found: Sequence[Candidate], free: int | None, wanted: bool) -> Settled | None:
        """The corners that all have; None, with an error, if there are none or they are not wanted."""
        shapes = [one.view.spec.shape for one in found]
        listed = " and ".join(f"{list(one.view.spec.shape)} in {self._listed([one.entry])}" for one in found)
        if not wanted or len(set(map(len, shapes))) > 1 or not all(_has_corner(one.view) for one in found):
            self._unequal.append(f"`{name}` is {listed}" + (", which cannot be cropped" if wanted else ""))
            return None
        least = tuple(map(min, *shapes))
        self._remark("warning", "on_shape_mismatch: crop", f"cut to {list(least)} from {listed}", name)
        return Settled(tuple(replace(one, view=corner(one.view, _kept(one, least, free))) for one in found))

    def _base(self, segment: Segment) -> Input:
        """The base of a segment; for methods without one, the model that the recipe calls so, or the first."""
        if segment.base is not None:
            return segment.base
        named = [entry for entry in segment.inputs if entry.model == 0 and self.recipe.base_model]
        return [*named, *segment.inputs][0]

    def _base_alone(
        self, rule: str, name: str, segment: Segment, found: Sequence[Candidate], why: str
    ) -> Settled | None:
        base = self._base(segment)
        own = [one for one in found if one.entry is base]
        ref = self._listed([base])
        if not own:
            self._remark("notice", rule, f"left out, not there in {ref}", name)
            self._drop(found, f"`{rule}`: {ref} has no such tensor")
            return None
        self._remark("notice", rule, f"taken unchanged from {ref}, {why}", name)
        self._drop([one for one in found if one.entry is not base], f"`{rule}`: the output has that of {ref}")
        return Settled(tuple(own), whole=True)

    def _enough(self, rule: str, name: str, segment: Segment, kept: Sequence[Candidate], what: str) -> Settled | None:
        """Merge what is left, if the method merges so few; else take the last one as it is."""
        needs = self.method.needs
        merged = sum(one.entry is not segment.base for one in kept)
        based = len(kept) > merged or needs.base != "required"
        if based and merged >= needs.least:
            self._remark("notice", rule, what, name)
            return Settled(tuple(kept))
        if len(kept) == 1:
            only = f"taken unchanged from {self._listed([kept[0].entry])}, the only model left"
            self._remark("warning", rule, f"{only} ({self.method.name} needs {needs})", name)
            return Settled(tuple(kept), whole=True)
        left = self._listed(one.entry for one in kept)
        self._remark("error", rule, f"cannot be merged from {left} alone: {self.method.name} needs {needs}", name)
        return None

    def _listed(self, entries: Iterable[Input]) -> str:
        return " and ".join(str(self.models[entry.model].ref) for entry in entries)

    def _drop(self, candidates: Iterable[Candidate], reason: str) -> None:
        for one in candidates:
            self.dropped.setdefault((one.entry.model, reason), []).extend(one.view.names)

    def _remark(self, kind: Literal["notice", "warning", "error"], rule: str, what: str, name: str) -> None:
        self._remarks.setdefault(_Remark(kind, rule, what), []).append(name)

    def treated(self) -> tuple[Treated, ...]:
        """The output tensors that each rule was applied to."""
        names: dict[str, dict[str, None]] = {}
        for remark, own in self._remarks.items():
            names.setdefault(remark.rule, {}).update(dict.fromkeys(own))
        return tuple(Treated(rule, tuple(own)) for rule, own in names.items())

    def conclude(self, wanted: int) -> None:
        """Tell what the rules did, and refuse what they do not cover.

        Parameters:
            wanted: number of all output tensors.

        Raises:
            MissingTensorError: a model lacks a tensor that another one has.
            IncompatibleModelsError: tensors have different shapes.
        """
        for remark, names in self._remarks.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            listed = ", ".join(f"`{name}`" for name in names[:_SHOWN]) + more
            text = f"`{remark.rule}`: {len(names)} tensor{'' if len(names) == 1 else 's'} {remark.what}: {listed}"
            place = self.recipe.place(remark.rule.partition(":")[0])
            if remark.kind == "notice":
                self.findings.notice(text)
            elif remark.kind == "warning":
                self.findings.warn(text, place)
            else:
                self.findings.error(text, place, hint=f"`{place.path}: base`, which needs no other model")
        if self._unequal or self._missing:
            self._refuse(wanted)

    def _refuse(self, wanted: int) -> None:
        reports = list(self._unequal)
        for index, names in self._missing.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            reports.append(f"{self.models[index].ref} has no `{names[0]}`{more}")
        counts = {_SHAPE_HINT: len(self._unequal), _MISSING_HINT: max(map(len, self._missing.values()), default=0)}
        # Where most tensors differ, the models are of different kinds and no rule makes sense of them.
        hints = [hint for hint, count in counts.items() if 0 < 2 * count < wanted]
        kind = IncompatibleModelsError if self._unequal else MissingTensorError
        raise incompatible(self.models, reports, kind, "; ".join(hints) or None)
