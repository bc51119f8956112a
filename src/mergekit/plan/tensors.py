"""Output tensors: which there are, what each is made of, and what is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mergekit.checkpoint import DTYPES, DType, TensorSpec, dtype_titled
from mergekit.errors import Findings, IncompatibleModelsError, MissingTensorError, Place, UnsupportedError
from mergekit.layout import derived_buffer
from mergekit.methods import Method
from mergekit.plan.compatibility import incompatible
from mergekit.plan.models import Key, Model
from mergekit.plan.parameters import MissingParameterError, report_missing, values_for
from mergekit.plan.segments import Input, ModuleSegments, Segment
from mergekit.plan.tasks import Leftover, Operand, TensorTask
from mergekit.plan.views import View
from mergekit.recipe import Recipe

MERGEABLE = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes that are computed with; others are copied."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An output tensor before its inputs are known.

    Parameters:
        name: in the output.
        segment: where it belongs.
        keys: its place in each input of the segment.
        depth: coordinate of gradients, 0 to 1.
    """

    name: str
    segment: Segment
    keys: tuple[Key, ...]
    depth: float


def slots(modules: Sequence[ModuleSegments], models: Sequence[Model]) -> Iterator[Slot]:
    """Every output tensor that some input has, module by module: before the layers, the layers, after them."""
    counts = {m.module.name: sum(s.layers for s in m.segments) for m in modules if m.sliced}
    for module in modules:
        yield from _outside(module, module.segments[0], models, "pre", counts)
        yield from _layers(module, models)
        yield from _outside(module, module.segments[-1], models, "post", counts)


def _places(module: ModuleSegments, models: Sequence[Model], entry: Input, layer: int | None) -> Iterator[Key]:
    for key in models[entry.model].views:
        if key[0] == module.module.name and key[1] == layer:
            yield key


def _outside(
    module: ModuleSegments, segment: Segment, models: Sequence[Model], side: str, counts: Mapping[str, int]
) -> Iterator[Slot]:
    seen: dict[Key, str] = {}
    for entry in segment.inputs:
        model = models[entry.model]
        for key in _places(module, models, entry, None):
            part = model.part(key)
            if part and part.side == side and key not in seen:
                seen[key] = model.layout.renumbered(model.names[key], counts)
    head = models[0].head  # the donor's config makes loaders look for it, whatever the segment's models have
    if side == "post" and head and head[0] == module.module.name and head not in seen:
        seen[head] = models[0].layout.renumbered(models[0].names[head], counts)
    for key, name in seen.items():
        yield Slot(name, segment, (key,) * len(segment.inputs), 0.0)


def _layers(module: ModuleSegments, models: Sequence[Model]) -> Iterator[Slot]:
    stack = module.module.stack
    if stack is None:
        return
    by_layer = [_suffixes_by_layer(module, model) for model in models]
    output = 0
    for segment in module.segments:
        for step in range(segment.layers):
            depth = step / (segment.layers - 1) if segment.layers > 1 else 1.0
            suffixes: dict[str, None] = {}
            for entry in segment.inputs:
                suffixes.update(dict.fromkeys(by_layer[entry.model].get(entry.first + step, ())))
            for suffix in suffixes:
                keys = tuple((module.module.name, entry.first + step, suffix) for entry in segment.inputs)
                yield Slot(stack.name(output, suffix), segment, keys, depth)
            output += 1


def _suffixes_by_layer(module: ModuleSegments, model: Model) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, layer, suffix in model.views:
        if name == module.module.name and layer is not None:
            found.setdefault(layer, []).append(suffix)
    return found


def promoted(dtypes: Sequence[DType]) -> DType:
    """The dtype in which inputs of several dtypes are written: the widest, and F32 for BF16 with F16."""
    names = {dtype.name for dtype in dtypes}
    if names == {"BF16", "F16"}:
        return DTYPES["F32"]
    order = ("F64", "F32", "F16", "BF16")
    return next((DTYPES[name] for name in order if name in names), dtypes[0])


def tensor_task(
    name: str,
    method: Method,
    operands: tuple[Operand, ...],
    based: bool,
    *,
    dtype: DType | None = None,
    seed: int,
    places: Sequence[str],
) -> TensorTask:
    """The task of one output tensor: floating-point entries are merged, others must be the same and are copied.

    Parameters:
        name: of the output.
        method: with the parameters of this tensor.
        operands: inputs of one shape, the base first if `based`.
        based: whether the first operand is the base.
        dtype: of the output if entries are merged; None for the widest of the operands.
        seed: of random methods.
        places: where the operands come from, for messages.

    Raises:
        UnsupportedError: the operands hold packed numbers, or numbers of different kinds.
    """
    dtypes = [operand.view.spec.dtype for operand in operands]
    shape = operands[0].view.spec.shape
    if all(each.name in MERGEABLE for each in dtypes):
        return TensorTask(TensorSpec(name, dtype or promoted(dtypes), shape), method, operands, based, seed=seed)
    if len(set(dtypes)) > 1 or (dtypes[0].kind == "float" and len(operands) > 1):
        titles = " and ".join(sorted({each.title for each in dtypes}))
        raise UnsupportedError(
            f"`{name}` is stored as {titles}, which this version cannot merge",
            place=", ".join(places),
            expected=", ".join(sorted(DTYPES[each].title for each in MERGEABLE)),
            hint="the unquantised weights of these models",
        )
    return TensorTask(TensorSpec(name, dtypes[0], shape), method, operands, based, identical=True)


@dataclass(slots=True)
class Assembler:
    """Makes a task of every slot, collecting what is wrong and what is left over."""

    recipe: Recipe
    method: type[Method]
    models: Sequence[Model]
    findings: Findings
    crop_vocabulary: bool = False
    seed: int = 0
    missing: dict[int, list[str]] = field(default_factory=dict)
    used: set[tuple[int, str]] = field(default_factory=set)
    dropped: dict[tuple[int, str], list[str]] = field(default_factory=dict)
    unequal: list[str] = field(default_factory=list)

    def assemble(self, wanted: Sequence[Slot]) -> tuple[TensorTask, ...]:
        """The tasks of all slots.

        Raises:
            MissingTensorError: a model lacks a tensor that another one has.
            IncompatibleModelsError: tensors of one slot have different shapes.
        """
        tasks = [task for slot in wanted if (task := self._task(slot)) is not None]
        if self.unequal or self.missing:
            self._refuse()
        return tuple(tasks)

    def leftovers(self) -> tuple[Leftover, ...]:
        """Input tensors that no task reads, by model and reason."""
        reasons = {index: self._reason(index) for index in range(len(self.models))}
        given = {
            (index, why): list(names)
            for index, model in enumerate(self.models)
            for why, names in model.left_out.items()
        }
        grouped = {**self.dropped, **given}
        gone = {(index, name) for (index, _), names in grouped.items() for name in names}
        for index, model in enumerate(self.models):
            for name in model.checkpoint.tensors:
                if (index, name) not in self.used and (index, name) not in gone:
                    grouped.setdefault((index, reasons[index]), []).append(name)
        return tuple(Leftover(index, reason, tuple(names)) for (index, reason), names in grouped.items())

    def _reason(self, index: int) -> str:
        if all(used != index for used, _ in self.used):
            return f"{self.method.name} takes only config and other files from this model"
        return "not selected by the recipe"

    def _refuse(self) -> None:
        reports = list(self.unequal)
        for index, names in self.missing.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            reports.append(f"{self.models[index].ref} has no `{names[0]}`{more}")
        kind = IncompatibleModelsError if self.unequal else MissingTensorError
        raise incompatible(self.models, reports, kind)

    def _task(self, slot: Slot) -> TensorTask | None:
        found = [self._view(entry, key) for entry, key in zip(slot.segment.inputs, slot.keys, strict=True)]
        views = [self._cropped(slot, view) for view in found if view is not None]
        if len(views) < len(found):
            self._note_missing(slot, found)
            return None
        if len({view.spec.shape for view in views}) > 1:
            self._note_unequal(slot, views)
            return None
        base = slot.segment.base
        inputs = list(zip(slot.segment.inputs, slot.keys, views, strict=True))
        inputs.sort(key=lambda part: part[0] is not base)  # stable: the base first, the others as they are
        self.used.update((entry.model, name) for entry, _, view in inputs for name in view.names)
        method = self._method(slot, [(entry, key) for entry, key, _ in inputs if entry is not base])
        operands = tuple(Operand(entry.model, view) for entry, _, view in inputs)
        return self._merged(slot, method, operands, base is not None) if method else None

    def _merged(self, slot: Slot, method: Method, operands: tuple[Operand, ...], based: bool) -> TensorTask:
        title = self.recipe.out_dtype or self.recipe.dtype
        dtype = dtype_titled(title) if title else None
        places = [str(self.models[operand.model].ref) for operand in operands]
        return tensor_task(slot.name, method, operands, based, dtype=dtype, seed=self.seed, places=places)

    def _method(self, slot: Slot, entries: Sequence[tuple[Input, Key]]) -> Method | None:
        if slot.segment.levels == ():  # a module taken over as it is
            from mergekit.methods.passthrough import Passthrough

            return Passthrough(scale=(1.0,))
        per_model = [(entry.parameters, self.models[entry.model].own_name(key)) for entry, key in entries]
        try:
            values = values_for(self.method, slot.segment.levels, per_model, slot.name, slot.depth)
        except MissingParameterError as error:
            report_missing(self.recipe, self.method, error.args[0], self.findings)
            return None
        except ValueError as error:  # only gradients can still go wrong here, between values that are right
            self._tell(self.findings.error, f"a gradient has no valid value everywhere: {error}", slot)
            return None
        method = self.method(**values)
        for mistake in method.mistakes():
            self._tell(self.findings.error, mistake, slot)
        for remark in method.remarks():
            self._tell(self.findings.warn, remark, slot)
        return method

    def _tell(self, record: Callable[[str, Place], None], what: str, slot: Slot) -> None:
        """Record something once, at the first tensor; what differs between tensors stands behind a colon."""
        place = self.recipe.place(slot.segment.path)
        stem = what.partition(":")[0]
        known = (*self.findings.errors, *self.findings.warnings)
        if not any(problem.place == place and problem.what.startswith(stem) for problem in known):
            record(f"{what} (first at `{slot.name}`)", place)

    def _view(self, entry: Input, key: Key) -> View | None:
        model = self.models[entry.model]
        if key in model.views:
            return model.views[key]
        is_head = any((part := other.part(key)) and part.role == "head" for other in self.models)
        return model.embedding if is_head else None

    def _cropped(self, slot: Slot, view: View) -> View:
        """The rows that all inputs have, of a tensor with a row per token, if cropping is asked for."""
        if not self.crop_vocabulary:
            return view
        models = [self.models[entry.model] for entry in slot.segment.inputs]
        parts = [model.part(key) for model, key in zip(models, slot.keys, strict=True)]
        if all(part is None or part.vocab_axis != 0 for part in parts):
            return view
        others = [self._view(entry, key) for entry, key in zip(slot.segment.inputs, slot.keys, strict=True)]
        least = min(other.spec.shape[0] for other in others if other is not None)
        if view.spec.shape[0] == least:
            return view
        self.findings.warn(f"vocabulary of `{slot.name}` cut to {least} rows; token ids are not compared")
        return view.rows(least)

    def _note_missing(self, slot: Slot, found: Sequence[View | None]) -> None:
        shape = next(view.spec.shape for view in found if view is not None)
        reason = derived_buffer(slot.name, shape)
        for entry, key, view in zip(slot.segment.inputs, slot.keys, found, strict=True):
            if reason and view is not None:
                self.dropped.setdefault((entry.model, reason), []).extend(view.names)
            elif not reason and view is None:
                self.missing.setdefault(entry.model, []).append(self.models[entry.model].own_name(key))

    def _note_unequal(self, slot: Slot, views: Sequence[View]) -> None:
        shapes = [
            f"{list(view.spec.shape)} in {self.models[entry.model].ref}"
            for entry, view in zip(slot.segment.inputs, views, strict=True)
        ]
        self.unequal.append(f"`{slot.name}` is " + " and ".join(shapes))
