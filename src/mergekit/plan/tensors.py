"""Output tensors: which there are, what each is made of, and what is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mergekit.checkpoint import DTYPES, DType, TensorSpec, dtype_titled
from mergekit.errors import Findings, Place, UnsupportedError
from mergekit.layout import PREDICTION
from mergekit.methods import Method
from mergekit.plan.models import Key, Model
from mergekit.plan.parameters import MissingParameterError, report_missing, values_for
from mergekit.plan.segments import Input, ModuleSegments, Segment
from mergekit.plan.tasks import Leftover, Operand, TensorTask
from mergekit.plan.tolerance import Candidate, Settled, Tolerance
from mergekit.plan.views import View
from mergekit.plan.vocabulary import Order
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
    order: Order | None = None
    used: set[tuple[int, str]] = field(default_factory=set)
    tolerance: Tolerance = field(init=False)

    def __post_init__(self) -> None:
        self.tolerance = Tolerance(self.recipe, self.method, self.models, self.findings)

    def assemble(self, wanted: Sequence[Slot]) -> tuple[TensorTask, ...]:
        """The tasks of all slots.

        Raises:
            MissingTensorError: a model lacks a tensor that another one has.
            IncompatibleModelsError: tensors of one slot have different shapes.
        """
        tasks = [task for slot in wanted if (task := self._task(slot)) is not None]
        self.tolerance.conclude(len(wanted))
        return tuple(tasks)

    def leftovers(self) -> tuple[Leftover, ...]:
        """Input tensors that no task reads, by model and reason."""
        gone = set(self.used)  # a tensor may go into several outputs, and not into some of them
        grouped: dict[tuple[int, str], list[str]] = {}
        for index, reason, name in self._unread():
            if (index, name) not in gone:
                gone.add((index, name))
                grouped.setdefault((index, reason), []).append(name)
        return tuple(Leftover(index, reason, tuple(names)) for (index, reason), names in grouped.items())

    def _unread(self) -> Iterator[tuple[int, str, str]]:
        """Why a tensor of a model may be in no output, the first reason for it first."""
        for (index, reason), names in self.tolerance.dropped.items():
            yield from ((index, reason, name) for name in names)
        reading = {index for index, _ in self.used}
        for index, model in enumerate(self.models):
            for reason, own in model.left_out.items():
                yield from ((index, reason, name) for name in own)
            apart, usual = self._apart(model), "not selected by the recipe"
            if index not in reading:
                apart, usual = {}, f"{self.method.name} takes only config and other files from this model"
            yield from ((index, apart.get(name, usual), name) for name in model.checkpoint.tensors)

    def _apart(self, model: Model) -> dict[str, str]:
        """The reason for tensors of modules that the output does not have."""
        donor = self.models[0]
        return {
            name: f"`{key[0]}` is no part of {donor.ref}, and so none of the output"
            for key, view in model.views.items()
            if donor.layout.module(key[0]) is None
            for name in view.names
        }

    def _task(self, slot: Slot) -> TensorTask | None:
        found, lacking = [], []
        for entry, key in zip(slot.segment.inputs, slot.keys, strict=True):
            view = self._view(entry, key)
            if view is None:
                lacking.append((entry, key))
            else:
                found.append(Candidate(entry, key, view))
        axis = self._token_axis(slot)
        settled = self.tolerance.settle(slot.name, slot.segment, found, lacking, axis)
        if settled is None:
            return None
        views = [one.view for one in settled.candidates]
        if axis is not None:
            views = self._with_rows(slot, [one.entry.model for one in settled.candidates], views, axis)
        base = None if settled.whole else slot.segment.base
        inputs = list(zip((one.entry for one in settled.candidates), views, strict=True))
        inputs.sort(key=lambda part: part[0] is not base)  # stable: the base first, the others as they are
        self.used.update((entry.model, name) for entry, view in inputs for name in view.names)
        method = self._method(slot, settled)
        operands = tuple(Operand(entry.model, view) for entry, view in inputs)
        if method is None:
            return None
        if self.recipe.embed_slerp and not settled.whole and self._vocabulary_axis(slot) is not None:
            return self._on_the_arc(slot, method, operands, inputs[0][0] is base)
        return self._merged(slot, method, operands, inputs[0][0] is base)

    def _on_the_arc(self, slot: Slot, method: Method, operands: tuple[Operand, ...], based: bool) -> TensorTask:
        """Merge a vocabulary tensor by SLERP: halfway, or at the second model's share where both have a weight."""
        if len(operands) != 2:
            self._tell(self.findings.warn, "embed_slerp has an effect on tensors of two models only", slot)
            return self._merged(slot, method, operands, based)
        from mergekit.methods.slerp import Slerp

        weights: Sequence[float] = getattr(method, "weight", ())
        total = sum(weights) if len(weights) == 2 else 0
        return self._merged(slot, Slerp(t=weights[1] / total if total else 0.5), operands, True)

    def _merged(self, slot: Slot, method: Method, operands: tuple[Operand, ...], based: bool) -> TensorTask:
        title = self.recipe.out_dtype or self.recipe.dtype
        dtype = dtype_titled(title) if title else None
        places = [str(self.models[operand.model].ref) for operand in operands]
        return tensor_task(slot.name, method, operands, based, dtype=dtype, seed=self.seed, places=places)

    def _method(self, slot: Slot, settled: Settled) -> Method | None:
        if settled.whole or slot.segment.levels == ():  # a tensor, or a module, taken over as it is
            from mergekit.methods.passthrough import Passthrough

            return Passthrough(scale=(1.0,))
        per_model = [
            (one.entry.parameters, self.models[one.entry.model].own_name(one.key))
            for one in settled.candidates
            if one.entry is not slot.segment.base
        ]
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
        parts = [other.part(key) for other in self.models]
        is_head = any(part and part.role == "head" and part.module != PREDICTION for part in parts)
        return model.embedding if is_head else None

    def _vocabulary_axis(self, slot: Slot) -> int | None:
        """The axis of a tensor that counts tokens."""
        parts = [self.models[e.model].part(key) for e, key in zip(slot.segment.inputs, slot.keys, strict=True)]
        return next((part.vocab_axis for part in parts if part is not None and part.vocab_axis is not None), None)

    def _token_axis(self, slot: Slot) -> int | None:
        """The axis of a tensor that counts tokens, if rows are put in order or cropped along it."""
        axis = self._vocabulary_axis(slot)
        return axis if self.order is not None or (self.crop_vocabulary and axis == 0) else None

    def _with_rows(self, slot: Slot, models: list[int], views: list[View], axis: int) -> list[View]:
        """Tensors with a row per token: the output's rows, or those that all inputs have if cropping is asked for."""
        if self.order is not None:
            return self._ordered(slot, self.order, models, views, axis)
        return self._cropped(slot, views) if axis == 0 and self.crop_vocabulary else views

    def _named_base(self, slot: Slot) -> int | None:
        """The base that the recipe names for a slot, whether the method compares with it or not."""
        own = next((piece.base_model for piece in self.recipe.every_slice() if piece.path == slot.segment.path), None)
        ref = own or self.recipe.base_model
        return next((index for index, model in enumerate(self.models) if model.ref == ref), None)

    def _cropped(self, slot: Slot, views: list[View]) -> list[View]:
        least = min(view.spec.shape[0] for view in views)
        if all(view.spec.shape[0] == least for view in views):
            return views
        self.findings.warn(f"vocabulary of `{slot.name}` cut to {least} rows; token ids are not compared")
        return [view if view.spec.shape[0] == least else view.rows(least) for view in views]

    def _ordered(self, slot: Slot, order: Order, models: list[int], views: list[View], axis: int) -> list[View]:
        embedding = self.models[models[0]].embedding
        # A head may have fewer rows than the embedding (Mllama), in any vocabulary.
        short = embedding.spec.shape[0] - views[0].spec.shape[axis] if embedding is not None else 0
        try:
            return order.shortened(max(0, short)).apply(models, self._named_base(slot), views, axis)
        except KeyError as error:
            source = self.models[error.args[0]].ref
            what = f"`{slot.name}` is not merged from {source}, which is to give rows of it"
            self.findings.error(what, self.recipe.place(slot.segment.path or "tokenizer"))
            return views
