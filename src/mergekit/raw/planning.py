"""A recipe for raw checkpoints → the plan of its merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from mergekit.checkpoint import Stored, plan_shards, read_tensor
from mergekit.errors import Findings, IncompatibleModelsError
from mergekit.methods import Method
from mergekit.plan import Model, Plan, PlanOptions, TensorTask
from mergekit.plan.fingerprint import provenance
from mergekit.plan.memory import fit_tasks
from mergekit.plan.methods import find_method
from mergekit.plan.parameters import check_filters, check_parameters
from mergekit.plan.segments import Arranger, Segment
from mergekit.plan.tensors import Assembler
from mergekit.raw.language import read_raw
from mergekit.raw.opening import open_all
from mergekit.raw.selection import Matching, Selection
from mergekit.recipe import Recipe

_SMALL = 1 << 20  # bytes of a tensor of whole numbers up to which it is compared while planning
_SHOWN = 5  # tensors named in an error


def plan_raw(
    text: str,
    *,
    file: str | None = None,
    options: PlanOptions | None = None,
    matching: Matching | None = None,
) -> Plan:
    """Plan the merge of raw checkpoints that a recipe describes.

    Parameters:
        text: the recipe, YAML.
        file: its name, for messages.
        options: see :class:`~mergekit.plan.PlanOptions`; those about tokenizers, experts and the hub have no effect.
        matching: see :class:`Matching`.

    Raises:
        RecipeError: the recipe has mistakes, or a checkpoint cannot be read; all of them are in the error.
        MissingTensorError: a tensor is not in all checkpoints, or in too few of them.
        IncompatibleModelsError: tensors of one name differ where they must agree.
        UnsupportedError: tensors are stored in a way that cannot be merged.
        BudgetError: the merge does not fit the memory it may use.
    """
    options = options or PlanOptions()
    recipe, findings = read_raw(text, file=file)
    method = find_method(recipe, findings, options.allow_code) if recipe else None
    models = open_all(recipe, findings, options.hub.known) if recipe else ()
    if recipe and method:
        check_parameters(recipe, method, findings)
    if recipe is None or method is None or not models:
        findings.raise_errors(options.strict)
        raise AssertionError("a recipe without errors has a method and checkpoints")
    return _plan(recipe, method, models, findings, options, matching or Matching())


def _plan(
    recipe: Recipe,
    method: type[Method],
    models: tuple[Model, ...],
    findings: Findings,
    options: PlanOptions,
    matching: Matching,
) -> Plan:
    [everything] = Arranger(recipe, method, models, findings).arrange()
    [whole] = everything.segments
    names = [name for model in models for name in (*model.checkpoint.tensors, *model.names.values())]
    check_filters(recipe, names, findings)
    if matching.names != "union":
        _warn_of_idle_base(recipe, method, whole, findings)
    findings.raise_errors(options.strict)
    selection = Selection(method, models, whole, matching)
    assembler = Assembler(recipe, method, models, findings, seed=options.seed)
    tasks = assembler.assemble(selection.slots(findings))
    assembler.tolerance.dropped.update(selection.left)
    findings.raise_errors(options.strict)
    _refuse_unequal(tasks, models)
    return Plan(
        recipe=recipe,
        models=models,
        method=method,
        tasks=tasks,
        shards=plan_shards([task.out for task in tasks], options.shard_bytes, provenance(recipe.text)),
        copies={},
        texts={"mergekit_config.yml": recipe.text},
        leftovers=assembler.leftovers(),
        findings=findings,
        memory=fit_tasks(tasks, options.workers, options.max_memory),
        seed=options.seed,
        treated=(*assembler.tolerance.treated(), *selection.treatments()),
        options={"shard_bytes": options.shard_bytes, "raw": asdict(matching)},
    )


def _warn_of_idle_base(recipe: Recipe, method: type[Method], whole: Segment, findings: Findings) -> None:
    if recipe.base_model and all(entry.model != 0 for entry in whole.inputs):
        what = f"`base_model` has no effect: {method.name} does not compare with a base"
        findings.warn(what, recipe.place("base_model"), "a checkpoint of `models`, if it is to be merged")


def _refuse_unequal(tasks: Sequence[TensorTask], models: Sequence[Model]) -> None:
    """Refuse small tensors of whole numbers that differ, all at once; large ones are compared while they are copied."""
    found = list(_unequal(tasks, models))
    if found:
        shown = ", ".join(f"`{name}`" for name in found[:_SHOWN])
        rest = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise IncompatibleModelsError(
            f"tensors of whole numbers differ between the checkpoints: {shown}{rest}",
            place=", ".join(str(model.ref) for model in models),
            expected="the same values in all checkpoints: whole numbers are copied, never averaged",
            hint="`--integers base`, which takes those of the base, or of the first checkpoint that has them",
        )


def _unequal(tasks: Sequence[TensorTask], models: Sequence[Model]) -> Iterator[str]:
    for task in tasks:
        if task.identical and len(task.operands) > 1 and task.out.nbytes <= _SMALL:
            stored = [models[operand.model].checkpoint.tensors[operand.view.spec.name] for operand in task.operands]
            if len({_octets(each) for each in stored}) > 1:
                yield task.out.name


def _octets(stored: Stored) -> bytes:
    return read_tensor(stored).tobytes()
