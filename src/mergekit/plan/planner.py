"""Recipe × checkpoints → plan: everything is decided, and every mistake found, before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from mergekit.checkpoint import dtype_titled, plan_shards
from mergekit.checkpoint.hub import Hub
from mergekit.errors import Findings, IncompatibleModelsError
from mergekit.methods import METHODS, Method
from mergekit.plan.compatibility import incompatible
from mergekit.plan.files import OutputFiles, with_ids
from mergekit.plan.fingerprint import provenance
from mergekit.plan.memory import fit_tasks
from mergekit.plan.methods import find_method, installed_methods
from mergekit.plan.models import Model, open_models, streaming_room
from mergekit.plan.parameters import KNOWN, check_filters, check_parameters
from mergekit.plan.problems import Problems
from mergekit.plan.remarks import remark_on
from mergekit.plan.segments import Arranger, ModuleSegments
from mergekit.plan.stacking import refuse_packed
from mergekit.plan.tasks import Plan
from mergekit.plan.tensors import Assembler, Slot, slots
from mergekit.plan.tolerance import rule_for
from mergekit.plan.vocabulary import Order, alignments_of, choose_vocabulary, keep_numbers
from mergekit.plan.vocabulary import Vocabulary as Tokens
from mergekit.plan.written_config import written_config
from mergekit.recipe import Recipe, Vocabulary, read_recipe
from mergekit.recipe.language import RECIPE
from mergekit.recipe.records import Record
from mergekit.tokenizer import TokenTable
from mergekit.tokenizer.alignment import Alignment

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
        preview: read only headers of what is on the hub, though the merge will download it.
        language: the keys that a recipe may have.
        noted: what the report says besides, by which the recipe can be read once more.
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
    preview: bool = False
    language: Record[Recipe] = RECIPE
    noted: Mapping[str, object] = field(default_factory=dict)

    @property
    def recorded(self) -> dict[str, object]:
        """Those that decide what is written, for the report; the seed stands there by itself."""
        names = ("shard_bytes", "copy_tokenizer", "crop_vocabulary", "fuse_experts")
        return {name: getattr(self, name) for name in names} | dict(self.noted)


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
        SeveralProblemsError: several of these; all of them are in the error.
    """
    return try_to_plan(text, file=file, options=options).result()


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of planning.

    Parameters:
        problems: what stands in the way, and what else was found.
        plan: None if something stands in the way.
        models: of the recipe; none if one of them cannot be opened.
        written: bytes of the weights that would be written; about so many if they cannot be merged yet, None if
            nothing is known about them.
        alignments: as in the plan.
    """

    problems: Problems
    plan: Plan | None = None
    models: tuple[Model, ...] = ()
    written: int | None = None
    alignments: Mapping[int, Alignment] = field(default_factory=dict)

    def result(self) -> Plan:
        """The plan.

        Raises:
            MergekitError: whatever stands in the way.
        """
        self.problems.raise_errors()
        if self.plan is None:
            raise AssertionError("where nothing stands in the way there is a plan")
        return self.plan


def try_to_plan(text: str, *, file: str | None = None, options: PlanOptions | None = None) -> Attempt:
    """Plan a merge as far as that is possible, and collect everything that stands in the way.

    Parameters:
        text: the recipe, YAML.
        file: its name, for messages.
        options: see :class:`PlanOptions`.
    """
    options = options or PlanOptions()
    recipe, findings = read_recipe(text, file=file, vocabulary=VOCABULARY, language=options.language)
    problems = Problems(findings, options.strict)
    if recipe is None:
        return Attempt(problems)
    method = find_method(recipe, findings, options.allow_code)
    hub = replace(options.hub, stream=options.hub.stream or options.preview)
    models: tuple[Model, ...] = ()
    with problems.collected():
        models = open_models(recipe, findings, options.fuse_experts, hub)
    if method:
        check_parameters(recipe, method, findings)
    if method is None or not models:
        return Attempt(problems, models=models)
    return _Draft(recipe, method, models, problems, options).attempt()


@final
@dataclass(slots=True)
class _Draft:
    """A plan in the making: every step goes on as long as there is something to be found out.

    Parameters:
        recipe: the recipe.
        method: of the merge.
        models: its models, the donor first.
        problems: what was found so far.
        options: of planning.
    """

    recipe: Recipe
    method: type[Method]
    models: tuple[Model, ...]
    problems: Problems
    options: PlanOptions

    @property
    def findings(self) -> Findings:
        """Of the recipe."""
        return self.problems.findings

    def attempt(self) -> Attempt:
        """Take all steps."""
        modules = Arranger(self.recipe, self.method, self.models, self.findings).arrange()
        wanted = list(slots(modules, self.models))
        self._check_filters(wanted)
        known = len(self.findings.errors)
        tokens, order, tables = self._vocabulary()
        alignments = alignments_of(self.models, tables)
        aligned = len(self.findings.errors) == known
        files = OutputFiles({}, {})
        with self.problems.collected():
            files = OutputFiles.of(self.recipe, self.models, tokens, self.options.copy_tokenizer, self.findings)
        with self.problems.collected():
            refuse_packed(modules, self.models)
        remark_on(self.models, self.method, self.options.hub.stream, self.findings)
        plan = None
        with self.problems.collected():
            _refuse_unequal_depth(modules, self.models)
            if self.findings.errors or self.problems.refusals:
                self._compare(modules, order, aligned)
            else:
                plan = replace(self._plan(modules, wanted, tokens, order, files), alignments=alignments)
        written = sum(shard.nbytes for shard in plan.shards) if plan else self._about(wanted)
        return Attempt(self.problems, None if self.problems.errors else plan, self.models, written, alignments)

    def _check_filters(self, wanted: Sequence[Slot]) -> None:
        of_models = [
            name for model in self.models for name in (*model.checkpoint.tensors, *map(model.own_name, model.views))
        ]
        check_filters(self.recipe, [*of_models, *(slot.name for slot in wanted)], self.findings)

    def _vocabulary(self) -> tuple[Tokens | None, Order | None, Sequence[TokenTable | None]]:
        """The output's tokens if the recipe asks for some; its rows if they are not just those of all; all tokens."""
        if self.recipe.tokenizer:
            tokens = choose_vocabulary(self.recipe, self.models, self.findings, self.options.hub)
            return (tokens, tokens.order, tokens.tables) if tokens else (None, None, ())
        if self.options.crop_vocabulary:
            return None, None, ()
        numbers = keep_numbers(self.models, self.findings)
        ruled = rule_for(self.recipe, "on_shape_mismatch", self.models[0].layout.embedding or "") != "error"
        return None, None if ruled else numbers.order, numbers.tables

    def _compare(self, modules: Sequence[ModuleSegments], order: Order | None, aligned: bool) -> None:
        """Only look whether the tensors go together, whatever the parameters are.

        Raises:
            MergekitError: they do not; what follows from known problems is not told again.
        """
        bare = [
            replace(module, segments=tuple(replace(segment, levels=()) for segment in module.segments))
            for module in modules
        ]
        crop = self.options.crop_vocabulary or not aligned
        Assembler(self.recipe, self.method, self.models, Findings(), crop, order=order).assemble(
            list(slots(bare, self.models))
        )

    def _plan(
        self,
        modules: Sequence[ModuleSegments],
        wanted: Sequence[Slot],
        tokens: Tokens | None,
        order: Order | None,
        files: OutputFiles,
    ) -> Plan:
        recipe, options, findings = self.recipe, self.options, self.findings
        assembler = Assembler(recipe, self.method, self.models, findings, options.crop_vocabulary, options.seed, order)
        tasks = assembler.assemble(wanted)
        texts = {**files.texts, "mergekit_config.yml": recipe.text}
        config = written_config(self.models, modules, tasks)
        texts["config.json"] = with_ids(config, "config.json", tokens, findings)
        room = streaming_room(self.models, options.hub)
        return Plan(
            recipe=recipe,
            models=self.models,
            method=self.method,
            tasks=tasks,
            shards=plan_shards([task.out for task in tasks], options.shard_bytes, provenance(recipe.text)),
            copies=files.copies,
            texts=texts,
            leftovers=assembler.leftovers(),
            findings=findings,
            memory=fit_tasks(tasks, options.workers, options.max_memory, room),
            seed=options.seed,
            treated=assembler.tolerance.treated(),
            options=options.recorded,
        )

    def _about(self, wanted: Sequence[Slot]) -> int:
        """Bytes of tensors of which it is not settled yet what they are made of: as large as in their first model."""
        title = self.recipe.out_dtype or self.recipe.dtype
        bits = dtype_titled(title).bits if title else None
        total = 0
        for slot in wanted:
            inputs = zip(slot.segment.inputs, slot.keys, strict=True)
            views = [self.models[entry.model].views.get(key) for entry, key in inputs]
            spec = next((view.spec for view in views if view is not None), None)
            if spec is not None:
                total += spec.count * (bits or spec.dtype.bits) // 8
        return total


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
