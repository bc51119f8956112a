"""Recipe × checkpoints → plan: everything is decided, and every mistake found, before a weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mergekit.checkpoint import plan_shards
from mergekit.checkpoint.hub import ROOM, Hub
from mergekit.errors import Findings, IncompatibleModelsError
from mergekit.layout import edit_config
from mergekit.methods import METHODS, Method
from mergekit.plan.compatibility import differences, incompatible
from mergekit.plan.files import OutputFiles, with_ids
from mergekit.plan.fingerprint import provenance
from mergekit.plan.memory import fit_tasks
from mergekit.plan.methods import find_method, installed_methods
from mergekit.plan.models import Model, open_models
from mergekit.plan.parameters import KNOWN, check_filters, check_parameters
from mergekit.plan.segments import Arranger, ModuleSegments
from mergekit.plan.stacking import refuse_packed
from mergekit.plan.tasks import Plan, TensorTask
from mergekit.plan.tensors import MERGEABLE, Assembler, slots
from mergekit.plan.tolerance import rule_for
from mergekit.plan.vocabulary import choose_vocabulary, keep_numbers
from mergekit.recipe import Recipe, Vocabulary, read_recipe

VOCABULARY = Vocabulary(frozenset(METHODS), KNOWN, installed_methods)
"""Names that a recipe may use."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the command line adds to a recipe.

    Parameters:
        shard_bytes: most bytes of tensors in one output file; 0 for a single file.
        copy_tokenizer: take over the donor's tokenizer files.
        crop_vocabulary: cut vocabulary tensors to the rows that all models have.
        fuse_experts: merge and write the matrices of all experts of a layer as one tensor each.
        strict: treat warnings as errors.
        seed: of random methods.
        workers: threads, by default one per core.
        max_memory: bytes, by default a quarter of the machine's memory.
        allow_code: run the Python file that `merge_method` names.
        hub: how models are taken from the hub.
    """

    shard_bytes: int = 5_000_000_000
    copy_tokenizer: bool = True
    crop_vocabulary: bool = False
    fuse_experts: bool = False
    strict: bool = False
    seed: int = 0
    workers: int | None = None
    max_memory: int | None = None
    allow_code: bool = False
    hub: Hub = field(default_factory=Hub)


def plan_merge(text: str, *, file: str | None = None, options: PlanOptions | None = None) -> Plan:
    """Plan the merge that a recipe describes.

    Parameters:
        text: the recipe, YAML.
        file: its name, for messages.
        options: see :class:`PlanOptions`.

    Raises:
        RecipeError: the recipe has mistakes; all of them are in the error.
        IncompatibleModelsError: the models differ where they must agree.
        MissingTensorError: a model lacks a tensor that others have.
        UnsupportedError: the models are stored in a way that cannot be merged.
        BudgetError: the merge does not fit the memory it may use.
    """
    options = options or PlanOptions()
    recipe, findings = read_recipe(text, file=file, vocabulary=VOCABULARY)
    method = find_method(recipe, findings, options.allow_code) if recipe else None
    models = open_models(recipe, findings, options.fuse_experts, options.hub) if recipe else ()
    if recipe and method:
        check_parameters(recipe, method, findings)
    if recipe is None or method is None or not models:
        findings.raise_errors(options.strict)
        raise AssertionError("a recipe without errors has a method and models")
    return _plan(recipe, method, models, findings, options)


def _plan(
    recipe: Recipe, method: type[Method], models: tuple[Model, ...], findings: Findings, options: PlanOptions
) -> Plan:
    modules = Arranger(recipe, method, models, findings).arrange()
    wanted = list(slots(modules, models))
    names = [name for model in models for name in (*model.checkpoint.tensors, *map(model.own_name, model.views))]
    check_filters(recipe, [*names, *(slot.name for slot in wanted)], findings)
    vocabulary = choose_vocabulary(recipe, models, findings, options.hub) if recipe.tokenizer else None
    order = vocabulary.order if vocabulary else None
    if recipe.tokenizer is None and not options.crop_vocabulary:
        order = keep_numbers(models, findings)
    files = OutputFiles.of(recipe, models, vocabulary, options.copy_tokenizer, findings)
    findings.raise_errors(options.strict)
    _refuse_unequal_depth(modules, models)
    refuse_packed(modules, models)
    _note_architectures(models, findings)
    _note_heights(models, findings)
    _note_streaming(method, models, findings)
    order = vocabulary.order if vocabulary else None
    ruled = rule_for(recipe, "on_shape_mismatch", models[0].layout.embedding or "") != "error"
    if order is None and not options.crop_vocabulary and not ruled:
        order = keep_numbers(models, findings)
    assembler = Assembler(recipe, method, models, findings, options.crop_vocabulary, options.seed, order)
    tasks = assembler.assemble(wanted)
    texts = {**files.texts, "mergekit_config.yml": recipe.text}
    texts["config.json"] = with_ids(_config(models, modules, tasks), "config.json", vocabulary, findings)
    findings.raise_errors(options.strict)
    room = ROOM if any(model.checkpoint.remote for model in models) else 0
    return Plan(
        recipe=recipe,
        models=models,
        method=method,
        tasks=tasks,
        shards=plan_shards([task.out for task in tasks], options.shard_bytes, provenance(recipe.text)),
        copies=files.copies,
        texts=texts,
        leftovers=assembler.leftovers(),
        findings=findings,
        memory=fit_tasks(tasks, options.workers, options.max_memory, room),
        seed=options.seed,
        treated=assembler.tolerance.treated(),
    )


def _refuse_unequal_depth(modules: Sequence[ModuleSegments], models: Sequence[Model]) -> None:
    for module in modules:
        if module.sliced or module.module.stack is None:
            continue
        heights = {}
        for entry in module.segments[0].inputs:
            own = models[entry.model].layout.module(module.module.name)
            heights[entry.model] = own.stack.count if own and own.stack else 0
        if len(set(heights.values())) > 1:
            reports = [f"{models[index].ref} has {count} layers" for index, count in heights.items()]
            raise incompatible([models[index] for index in heights], reports, IncompatibleModelsError)


def _note_architectures(models: Sequence[Model], findings: Findings) -> None:
    for reason in differences(models):
        if reason.startswith("model_type "):
            findings.warn(f"the models call themselves different architectures: {reason}")


def _note_streaming(method: type[Method], models: Sequence[Model], findings: Findings) -> None:
    names = [str(model.ref) for model in models if model.checkpoint.remote]
    if names:
        once = method.reductions is Method.reductions
        again = "" if once else f"; `{method.name}` reads large tensors more than once, and each time anew"
        findings.notice(f"read from the hub while merging, not downloaded: {', '.join(names)}{again}")


_HEIGHTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _note_heights(models: Sequence[Model], findings: Findings) -> None:
    """Warn of configs whose number of layers is not that of the tensors: loaders would make up what is not there."""
    for model in models:
        stack = model.layout.main.stack
        if stack is not None and stack.count_key is None:
            told = {key: model.checkpoint.config[key] for key in _HEIGHTS if key in model.checkpoint.config}
            for key, value in told.items():
                findings.warn(f"{model.ref} has {stack.count} layers, and its config.json says {key} {value}")


def _config(models: Sequence[Model], modules: Sequence[ModuleSegments], tasks: Sequence[TensorTask]) -> str:
    donor = models[0]
    stacked = {
        module.module.name: [
            (model.checkpoint.config, model.layout, entry.first + step)
            for segment in module.segments
            for step in range(segment.layers)
            for entry in [segment.inputs[0]]
            for model in [models[entry.model]]
        ]
        for module in modules
        if module.sliced
    }
    text = donor.checkpoint.text("config.json") or "{}"
    return edit_config(
        text,
        donor=donor.layout,
        stacked=stacked,
        dtype=None if donor.packed else _written_dtype(tasks),
        tied=_written_tie(models, tasks),
        vocab_size=_written_vocabulary(donor, tasks),
        unquantised=not donor.packed,
    )


def _written_dtype(tasks: Sequence[TensorTask]) -> str | None:
    """The dtype that most bytes of the output have."""
    sizes: Counter[str] = Counter()
    for task in tasks:
        if task.out.dtype.name in MERGEABLE:
            sizes[task.out.dtype.title] += task.out.nbytes
    return sizes.most_common(1)[0][0] if sizes else None


def _written_tie(models: Sequence[Model], tasks: Sequence[TensorTask]) -> bool | None:
    """False if a head is written that loaders would ignore under the donor's config; None to leave it alone."""
    heads = [model.layout.head for model in models if model.layout.head]
    if not any(task.out.name in heads for task in tasks):
        return None
    untied = any(model.layout.head and not model.tied for model in models)
    return False if untied and models[0].layout.tied else None


def _written_vocabulary(donor: Model, tasks: Sequence[TensorTask]) -> int | None:
    """Rows of the output's embedding, if they are not the donor's."""
    name = donor.layout.embedding
    rows = next((task.out.shape[0] for task in tasks if task.out.name == name), None)
    own = donor.embedding
    return rows if own is None or rows != own.spec.shape[0] else None
