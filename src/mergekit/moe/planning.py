"""A mixture recipe → the plan of its tensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mergekit.checkpoint import DTYPES, DType, TensorSpec, dtype_titled, plan_shards
from mergekit.checkpoint.hub import Hub
from mergekit.errors import Findings
from mergekit.layout import edit_config, rewrite
from mergekit.layout.jsontext import without
from mergekit.moe.checking import check_models, check_recipe
from mergekit.moe.choosing import Chooser
from mergekit.moe.dense import MATRICES, Dense
from mergekit.moe.families import Family, Sizes
from mergekit.moe.gates import Rows, router_rows
from mergekit.moe.language import MoeRecipe, read_moe
from mergekit.moe.method import Mixture
from mergekit.moe.network import GateOptions
from mergekit.moe.tensors import Mixer, Part, Wanted
from mergekit.plan import Attempt, Leftover, Model, Operand, Plan, PlanOptions, Problems, TensorTask
from mergekit.plan.files import copied_files, rebuilt_files
from mergekit.plan.fingerprint import provenance
from mergekit.plan.memory import fit_tasks
from mergekit.plan.models import open_models, streaming_room
from mergekit.plan.tensors import MERGEABLE

CONFIG_NAME = "mergekit_moe_config.yml"
_UNUSED = "only the MLPs of an expert are taken"
_REPLACED = "the MLPs of the experts take its place"
_STALE = ("auto_map",)  # names the code of a model that the output is not


@dataclass(frozen=True, slots=True)
class MoeOptions:
    """What the command line adds to a mixture recipe.

    Parameters:
        fused: store all experts of a layer as one tensor each, as transformers 5 holds them.
        same_experts: experts may all be one model though routers are made of prompts.
        inexact: a family that the recipe names may compute otherwise than the base does.
        explain: say of each family why it does not fit.
        gates: how the base is run to make routers; None to leave routers zero, for a plan that is only shown.
    """

    fused: bool = False
    same_experts: bool = False
    inexact: bool = False
    explain: bool = False
    gates: GateOptions | None = field(default_factory=GateOptions)


@dataclass(frozen=True, slots=True)
class MoePlan:
    """The plan of a mixture.

    Parameters:
        plan: what is to be done.
        recipe: what was asked for.
        family: of the output.
        dtype: that the output is written in, or None where tensors keep theirs.
        hub: how its models are taken from the hub.
    """

    plan: Plan
    recipe: MoeRecipe
    family: Family
    dtype: str | None
    hub: Hub


def plan_moe(
    text: str, *, file: str | None = None, options: PlanOptions | None = None, moe: MoeOptions | None = None
) -> MoePlan:
    """Plan the mixture that a recipe describes.

    Gate modes of hidden states run the base model here.

    Parameters:
        text: the recipe, YAML.
        file: its name, for messages.
        options: see :class:`~mergekit.plan.PlanOptions`.
        moe: see :class:`MoeOptions`.

    Raises:
        RecipeError: the recipe has mistakes, or its models do not go together; all of them are in the error.
        UnsupportedError: routers need the base to be run, and transformers or torch is not installed.
        BudgetError: the work does not fit the memory it may use.
    """
    options, moe = options or PlanOptions(), moe or MoeOptions()
    recipe, findings = read_moe(text, file=file)
    if recipe is not None:
        check_recipe(recipe, findings, moe.same_experts)
    models = open_models(recipe.recipe, findings, hub=options.hub) if recipe is not None else ()
    if recipe is None or not models:
        findings.raise_errors(options.strict)
        raise AssertionError("a recipe without errors has models")
    return _Planner(recipe, models, findings, options, moe).planned()


def try_to_plan_moe(text: str, *, file: str | None = None, options: PlanOptions | None = None) -> Attempt:
    """Plan a mixture as far as that is possible without running a model, and keep what stands in the way.

    Parameters:
        text: the recipe, YAML.
        file: its name, for messages.
        options: see :class:`~mergekit.plan.PlanOptions`.
    """
    options = options or PlanOptions()
    hub = replace(options.hub, stream=options.hub.stream or options.preview)
    problems = Problems(Findings(), options.strict)
    with problems.collected():
        plan = plan_moe(text, file=file, options=replace(options, hub=hub), moe=MoeOptions(gates=None)).plan
        written = sum(shard.nbytes for shard in plan.shards)
        return Attempt(Problems(plan.findings, options.strict), plan, plan.models, written)
    return Attempt(problems)


@dataclass(frozen=True, slots=True)
class _Planner:
    """Plans a mixture of opened models."""

    recipe: MoeRecipe
    models: tuple[Model, ...]
    findings: Findings
    options: PlanOptions
    moe: MoeOptions

    def planned(self) -> MoePlan:
        base, experts, shared = self._parts()
        dense, added = [part.dense for part in experts], [part.dense for part in shared]
        check_models(self.recipe, base, dense, added, self.findings)
        chooser = Chooser(self.recipe, base, dense, added)
        family = None if self.findings.errors else chooser.choose(self.findings, self.moe.inexact, self.moe.explain)
        self.findings.raise_errors(self.options.strict)
        assert family is not None, "without errors there is a family"
        names = family.fused if self.moe.fused else family.classic
        rows = self._rows(base, family)
        self.findings.raise_errors(self.options.strict)
        mixer = Mixer(family, names, base, experts, shared, rows, self.options.seed)
        self._remark(family)
        plan = self._plan(mixer, base, family)
        return MoePlan(plan, self.recipe, family, self.recipe.recipe.dtype, self.options.hub)

    def _parts(self) -> tuple[Dense, list[Part], list[Part]]:
        known = {model.ref: index for index, model in enumerate(self.models)}
        taken = [Dense.of(model) for model in self.models]

        def parts(experts: Sequence[Any], shared: bool) -> list[Part]:
            indices = [known[expert.model] for expert in experts]
            return [
                Part(expert, taken[index], index, number, shared)
                for number, (expert, index) in enumerate(zip(experts, indices, strict=True))
            ]

        return taken[0], parts(self.recipe.experts, False), parts(self.recipe.shared, True)

    def _rows(self, base: Dense, family: Family) -> Rows:
        gated = self.recipe.shared if family.shared is not None and family.shared.gate else ()
        wanted = (*self.recipe.experts, *gated)
        if self.moe.gates is None:
            return np.zeros((len(base.layers), len(wanted), base.width), np.float32)
        gates = replace(self.moe.gates, hub=self.options.hub)
        return router_rows(self.recipe, base, wanted, self.options.seed, gates, self.findings)

    def _remark(self, family: Family) -> None:
        count = len(self.recipe.experts)
        if family.power_of_two and count & (count - 1):
            self.findings.notice(f"{count} experts are not a power of two, which llama.cpp wants of {family.title}")
        if family.shared is not None and family.shared.always and not self.recipe.shared:
            what = f"{family.title} has a shared expert in every layer: one that adds nothing is written"
            self.findings.notice(what)
        if family.shared is not None and family.shared.gate is None and self.recipe.shared:
            loud = [each for each in self.recipe.shared if each.residual_scale is None]
            for each in loud:
                what = "the shared expert adds all of its output to that of the experts"
                self.findings.warn(what, self.recipe.place(each.path), hint="`residual_scale: 0.1`")

    def _plan(self, mixer: Mixer, base: Dense, family: Family) -> Plan:
        wanted = list(mixer.tensors())
        dtype = self._dtype(base)
        tasks = tuple(self._task(each, dtype) for each in wanted)
        donor, recipe = self.models[0].checkpoint, self.recipe.recipe
        tokenizer = self.options.copy_tokenizer
        sizes = Sizes(
            len(mixer.experts), self.recipe.top_k, mixer.experts[0].dense.inner, mixer.shared_inner, len(base.layers)
        )
        texts = {**rebuilt_files(donor, tokenizer), "mergekit_config.yml": recipe.text, CONFIG_NAME: recipe.text}
        room = streaming_room(self.models, self.options.hub)
        texts["config.json"] = config_text(base, family, sizes, tasks)
        return Plan(
            recipe=recipe,
            models=self.models,
            method=Mixture,
            tasks=tasks,
            shards=plan_shards([task.out for task in tasks], self.options.shard_bytes, provenance(recipe.text)),
            copies=copied_files(donor.root, tokenizer),
            texts=texts,
            leftovers=tuple(self._leftovers(wanted, mixer)),
            findings=self.findings,
            memory=fit_tasks(tasks, self.options.workers, self.options.max_memory, room),
            seed=self.options.seed,
            options=self._told(family),
        )

    def _told(self, family: Family) -> dict[str, object]:
        """What of the options decides the output; as :mod:`mergekit.making` reads it."""
        gates = self.moe.gates or GateOptions()
        chosen = {name: getattr(self.moe, name) for name in ("fused", "same_experts", "inexact")}
        return {
            "shard_bytes": self.options.shard_bytes,
            "copy_tokenizer": self.options.copy_tokenizer,
            "architecture": family.model_type,
            "moe": {"options": chosen, "device": gates.device, "bits": gates.bits},
        }

    def _dtype(self, base: Dense) -> DType:
        """What computed tensors and experts are written in: what the recipe says, else that of the base's embedding."""
        embedding = base.model.embedding
        assert embedding is not None
        own = embedding.spec.dtype
        title = self.recipe.recipe.dtype
        return dtype_titled(title) if title else own if own.name in MERGEABLE else DTYPES["BF16"]

    def _task(self, wanted: Wanted, dtype: DType) -> TensorTask:
        view = wanted.view
        kept = view.spec.dtype.name in MERGEABLE and not wanted.own and self.recipe.recipe.dtype is None
        spec = TensorSpec(wanted.name, view.spec.dtype if kept else dtype, view.spec.shape)
        return TensorTask(spec, Mixture(), (Operand(wanted.model, view),), False, seed=self.options.seed)

    def _leftovers(self, wanted: Sequence[Wanted], mixer: Mixer) -> list[Leftover]:
        taken = {name for each in wanted if each.model == 0 and not each.own for name in each.view.names}
        used: dict[int, set[str]] = {0: taken}
        for part in (*mixer.experts, *mixer.shared):
            matrices = [layer[matrix] for layer in part.dense.layers for matrix in MATRICES]
            used.setdefault(part.model, set()).update(name for view in matrices for name in view.names)
        found = []
        for index, model in enumerate(self.models):
            left = tuple(name for name in model.checkpoint.tensors if name not in used.get(index, ()))
            if left:
                found.append(Leftover(index, _UNUSED if index else _REPLACED, left))
        return found


def config_text(base: Dense, family: Family, sizes: Sizes, tasks: Sequence[TensorTask]) -> str:
    """config.json of a mixture: the base's, with what makes it one of the family.

    Parameters:
        base: the donor.
        family: of the output.
        sizes: of the mixture.
        tasks: all output tensors.
    """
    model = base.model
    text = model.checkpoint.text("config.json") or "{}"
    written = Counter[str]()
    for task in tasks:
        written[task.out.dtype.title] += task.out.nbytes
    dtype = written.most_common(1)[0][0]
    tied = False if model.layout.tied and model.untied else None
    text = edit_config(text, donor=model.layout, dtype=dtype, tied=tied, unquantised=True)
    told = json.loads(text)
    text = without(text, [(key,) for key in _STALE if key in told])
    told = json.loads(text)
    named = {"architectures": [family.architecture], "model_type": family.model_type}
    changes: dict[tuple[str, ...], Any] = _implied(base, told)
    changes |= {(key,): value for key, value in {**named, **family.settings(base, sizes)}.items()}
    needed = {path: value for path, value in changes.items() if not (len(path) == 1 and _says(told, path[0], value))}
    return rewrite(text, needed)


def _says(told: Mapping[str, Any], key: str, value: object) -> bool:
    return key in told and told[key] == value and type(told[key]) is type(value)


def _implied(base: Dense, told: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """What the base's config leaves to loaders, which would assume something else for another family."""
    silent = {key: value for key, value in base.config.items() if key not in told and key != "rope_theta"}
    changes: dict[tuple[str, ...], Any] = {(key,): value for key, value in silent.items()}
    attention = base.layers[0]
    if "num_key_value_heads" not in told and "k" in attention:
        changes["num_key_value_heads",] = attention["k"].spec.shape[0] // base.head_dim
    if "head_dim" in told and told["head_dim"] is None:
        changes["head_dim",] = base.head_dim
    rope = told.get("rope_parameters")
    theta = base.config.get("rope_theta", 10000.0)
    if isinstance(rope, Mapping):
        if "rope_theta" not in rope:
            changes["rope_parameters", "rope_theta"] = theta
    elif "rope_theta" not in told:
        changes["rope_theta",] = theta
    return changes
