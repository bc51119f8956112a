"""What a merge does, in words: what the base is, which model a number refers to, what slices take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mergekit.methods import Parameter
from mergekit.plan import Plan, TensorTask
from mergekit.plan.parameters import levels
from mergekit.recipe import Filtered, Gradient, ModelRef, Setting, Slice
from mergekit.report.roles import bases, merged


def sentences(plan: Plan) -> Iterator[tuple[str, str]]:
    """What is what in a merge: pairs of label and text.

    Parameters:
        plan: the merge.
    """
    yield "method", f"{plan.method.title} (`{plan.method.name}`)"
    yield "base", _listed(plan, sorted(bases(plan))) or "none: no model is compared with another"
    yield "models", _listed(plan, sorted(merged(plan) or {0}))
    for parameter in plan.method.parameters():
        yield parameter.name, _meaning(plan, parameter)
    yield "tokens", _tokens(plan)
    for prefix, slices in _sliced(plan):
        yield from _placed(slices, prefix)
    if any(_has_gradient(setting) for level in levels(plan.recipe) for setting in level.parameters.settings.values()):
        where = "each slice" if plan.recipe.every_slice() else "the model"
        yield "gradients", f"from the first layer of {where} to its last; outside of the layers the first value"
    if taken := _taken(plan):
        yield "besides", taken


def _has_gradient(setting: Setting) -> bool:
    cases = setting.cases if isinstance(setting, Filtered) else ()
    return isinstance(setting, Gradient) or any(isinstance(case.value, Gradient) for case in cases)


def _listed(plan: Plan, indices: list[int]) -> str:
    return ", ".join(str(plan.models[index].ref) for index in indices)


def _meaning(plan: Plan, parameter: Parameter) -> str:
    """What a parameter does, with the models that it is about by their names."""
    task = next((task for task in plan.tasks if type(task.method) is plan.method and task.based), None)
    if parameter.per_model:
        return f"{parameter.doc}; a value for each model"
    if task is None or len(task.operands) != 2 or len(bases(plan)) > 1 or len(merged(plan)) > 1:
        return parameter.doc
    first, second = (str(plan.models[operand.model].ref) for operand in task.operands)
    ends = "(0)" in parameter.doc and "(1)" in parameter.doc
    named = parameter.doc.replace("the base", first).replace("the model", second)
    return f"{parameter.name} = 0 is {first}, {parameter.name} = 1 is {second}" if ends else named


def _tokens(plan: Plan) -> str:
    """Which tokens the output has."""
    donor, setting = plan.models[0], plan.recipe.tokenizer
    rows = next((task.out.shape[0] for task in plan.tasks if task.out.name == donor.layout.embedding), None)
    count = f"{rows:,} rows" if rows is not None else "no tensor is known as the embedding"
    if setting is None:
        return f"by their numbers, as in {donor.ref}: {count}"
    if setting.source == "union":
        others = ", ".join(str(model.ref) for model in plan.models[1:])
        return f"those of {donor.ref}, then whatever else {others} know: {count}"
    return f"those of {setting.source if isinstance(setting.source, ModelRef) else donor.ref}: {count}"


def _sliced(plan: Plan) -> Iterator[tuple[str, tuple[Slice, ...]]]:
    yield "", plan.recipe.slices
    yield from ((f"{module.name} ", module.slices) for module in plan.recipe.modules)


def _placed(slices: tuple[Slice, ...], prefix: str) -> Iterator[tuple[str, str]]:
    first = 0
    for piece in slices:
        sources = [f"{_range(source.layers or range(0))} of {source.model}" for source in piece.sources]
        base = f", base {piece.base_model}" if piece.base_model else ""
        count = len(piece.sources[0].layers or ())
        if count:
            yield f"{prefix}layers {_range(range(first, first + count))}", f"layers {' and '.join(sources)}{base}"
        first += count


def _range(layers: range) -> str:
    if not layers:
        return "none"
    return str(layers.start) if len(layers) == 1 else f"{layers.start}-{layers.stop - 1}"


def _taken(plan: Plan) -> str:
    """Tensors that the method has nothing to do with."""
    others = [task for task in plan.tasks if type(task.method) is not plan.method]
    counts = Counter(_how(plan, task) for task in others)
    return "; ".join(f"{count:,} tensor{'' if count == 1 else 's'} {how}" for how, count in counts.items())


def _how(plan: Plan, task: TensorTask) -> str:
    if task.copied is not None or len(task.operands) == 1:
        return f"of {plan.models[task.operands[0].model].ref}"
    return f"merged by {task.method.name}"
