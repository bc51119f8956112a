"""Which checkpoints take part in which output tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mergekit.checkpoint.finding import listed
from mergekit.errors import Findings, IncompatibleModelsError, MissingTensorError
from mergekit.methods import Method
from mergekit.plan import Model, Treated
from mergekit.plan.segments import Input, Segment
from mergekit.plan.tensors import Slot
from mergekit.raw.opening import key_of
from mergekit.recipe import Parameters

_SHOWN = 3  # tensors named in an error
_FEWER = "merged from the rest"
_SINGLE = "taken from a single one"
_LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Matching:
    """What becomes of tensors that are not alike in all checkpoints.

    Parameters:
        names: of tensors that some lack: "same" for an error, "intersection" to leave them out, "union" to merge what
            there is of them.
        integers: of tensors that hold whole numbers, or true and false: "same" for an error unless all are equal,
            "base" to take those of the base, or of the first checkpoint that has them.
    """

    names: Literal["same", "intersection", "union"] = "same"
    integers: Literal["same", "base"] = "same"


@dataclass(slots=True)
class Selection:
    """Selects the inputs of every output tensor, and notes which are treated in a way of their own.

    Parameters:
        method: how tensors are merged.
        models: the checkpoints; the first decides the order.
        whole: all of them that the method looks at.
        matching: what becomes of tensors that are not alike.
        treated: by what is done with them, the tensors of which some checkpoints have none.
        missing: reports of tensors that may not be missing.
        short: reports of tensors that too few checkpoints have.
        mixed: reports of tensors of whole numbers with several dtypes.
        left: input tensors that are in no output, by checkpoint and reason.
    """

    method: type[Method]
    models: Sequence[Model]
    whole: Segment
    matching: Matching
    treated: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    left: dict[tuple[int, str], list[str]] = field(default_factory=dict)

    def slots(self, findings: Findings) -> list[Slot]:
        """The output tensors and their inputs: in the order of the first checkpoint, then what others add.

        Parameters:
            findings: where it is recorded what becomes of tensors that are not in all checkpoints.

        Raises:
            MissingTensorError: a tensor is not in all checkpoints, or in too few of them.
            IncompatibleModelsError: a tensor has whole numbers in one checkpoint and others in another; or there is
                nothing that all checkpoints have.
        """
        names = dict.fromkeys(key[2] for model in self.models for key in model.views)
        chosen = {name: segment for name in names if (segment := self._segment(name))}
        self._refuse()
        for what, own in self.treated.items():
            findings.notice(f"{_counted(own)} not in all checkpoints and {what}: {listed(own)}")
        if not chosen:
            raise IncompatibleModelsError("the checkpoints have no tensor in common", place=self._refs(self.models))
        return [Slot(name, segment, (key_of(name),) * len(segment.inputs), 0.0) for name, segment in chosen.items()]

    def treatments(self) -> tuple[Treated, ...]:
        """The tensors that a flag was needed for."""
        return tuple(Treated(f"--tensor-{self.matching.names}", tuple(names)) for names in self.treated.values())

    def _segment(self, name: str) -> Segment | None:
        """The inputs of a tensor; None if it is not in the output."""
        present = [entry for entry in self.whole.inputs if key_of(name) in self.models[entry.model].views]
        if len(present) == len(self.whole.inputs):
            return self._with_integers(name, self.whole)
        if self.matching.names == "union":
            segment = self._of_some(name, present)
            return segment and self._with_integers(name, segment)
        self._drop(name, present)
        return None

    def _drop(self, name: str, present: Sequence[Input]) -> None:
        if not present:  # it is in a base that the method does not look at
            self._leave(name, [0], f"{self.method.name} does not compare with a base")
        elif self.matching.names == "intersection":
            self._treat(name, _LEFT_OUT)
            self._leave(name, [entry.model for entry in present], "not in all checkpoints")
        else:
            self.missing.append(self._report(name, present))

    def _of_some(self, name: str, present: Sequence[Input]) -> Segment | None:
        """The method on those that have the tensor, if they are enough; a single one as it is."""
        base, needs = self.whole.base if self.whole.base in present else None, self.method.needs
        if len(present) - (base is not None) >= needs.least and (base or needs.base != "required"):
            self._treat(name, _FEWER)
            return replace(self.whole, inputs=tuple(present), base=base)
        if len(present) < 2:  # none: it is in a base that the method does not look at
            self._treat(name, _SINGLE)
            return _alone(*present or [Input(0, 0, Parameters({}, ""))])
        self.short.append(self._report(name, present))
        return None

    def _with_integers(self, name: str, segment: Segment) -> Segment:
        dtypes = [self.models[entry.model].views[key_of(name)].spec.dtype for entry in segment.inputs]
        if all(dtype.kind == "float" for dtype in dtypes):
            return segment
        if self.matching.integers == "base":
            chosen = segment.base or segment.inputs[0]
            others = [entry.model for entry in segment.inputs if entry is not chosen]
            self._leave(name, others, f"whole numbers are taken from {self.models[chosen.model].ref}")
            return _alone(chosen)
        if len(set(dtypes)) > 1:
            pairs = zip(segment.inputs, dtypes, strict=True)
            kinds = [f"{dtype.title} in {self.models[entry.model].ref}" for entry, dtype in pairs]
            self.mixed.append(f"`{name}` is {' and '.join(kinds)}")
        return segment

    def _treat(self, name: str, what: str) -> None:
        self.treated.setdefault(what, []).append(name)

    def _leave(self, name: str, indices: Sequence[int], reason: str) -> None:
        for index in indices:
            self.left.setdefault((index, reason), []).append(self.models[index].own_name(key_of(name)))

    def _report(self, name: str, present: Sequence[Input]) -> str:
        absent = sorted({entry.model for entry in self.whole.inputs} - {entry.model for entry in present})
        return f"`{name}` (not in {self._refs([self.models[index] for index in absent])})"

    def _refuse(self) -> None:
        place = self._refs(self.models)
        if self.missing:
            hint = "`--tensor-union` to merge what there is of them, or `--tensor-intersection` to leave them out"
            what = f"{_counted(self.missing)} not in all checkpoints: {_some(self.missing)}"
            raise MissingTensorError(what, place=place, hint=hint)
        if self.short:
            what = f"{_counted(self.short)} in too few checkpoints for {self.method.name}: {_some(self.short)}"
            raise MissingTensorError(what, place=place, expected=str(self.method.needs))
        if self.mixed:
            what = f"{_counted(self.mixed)} not stored alike: {_some(self.mixed)}"
            expected = "one dtype: whole numbers are copied, never averaged"
            raise IncompatibleModelsError(what, place=place, expected=expected, hint="`--integers base`")

    def _refs(self, models: Sequence[Model]) -> str:
        return ", ".join(str(model.ref) for model in models)


def _alone(entry: Input) -> Segment:
    """One input, taken as it is."""
    return Segment((entry,), None, 0, (), "")


def _counted(items: Sequence[str]) -> str:
    return f"{len(items)} tensor{' is' if len(items) == 1 else 's are'}"


def _some(reports: Sequence[str]) -> str:
    rest = f"; and {len(reports) - _SHOWN} more" if len(reports) > _SHOWN else ""
    return "; ".join(reports[:_SHOWN]) + rest
