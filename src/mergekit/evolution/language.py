"""The language of search configurations as a table: what is merged, and what varies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from mergekit.errors import Findings, Place
from mergekit.evolution.harness import Tasks
from mergekit.evolution.objectives import Objective
from mergekit.evolution.scoring import OBJECTIVE, Task, some
from mergekit.plan import VOCABULARY
from mergekit.recipe import Gradient, Parameters, Recipe, Scalar, Source
from mergekit.recipe.assembly import build_recipe
from mergekit.recipe.forms import Either, Flag, Form, Json, Many, Named, Reading, Text, Whole
from mergekit.recipe.language import RECIPE, REFERENCE
from mergekit.recipe.nodes import Leaf, Listing, Node
from mergekit.recipe.reader import read_document
from mergekit.recipe.records import Fields, Key, Record

_ALSO = ("merge_method", "base_model", "dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template")
_RULES = ("embed_slerp", "on_missing", "on_shape_mismatch")


@dataclass(frozen=True, slots=True)
class Space:
    """What is merged, and what may vary.

    Parameters:
        recipe: models, method, base and fixed parameters.
        written: the `genome` mapping as YAML has it, for recipes with the user's own references.
        groups: layers of each group; one number for groups of that many, 0 for a single group of all.
        normalize: None for what the peer takes.
        negative: whether weights below 0 are tried.
        filters: parts of tensor names that have values of their own.
        smooth: whether values change evenly from group to group.
        bounds: of parameters; naming one there has it searched.
    """

    recipe: Recipe
    written: Mapping[str, Any]
    groups: tuple[int, ...] | int
    normalize: bool | None
    negative: bool
    filters: tuple[str, ...]
    smooth: bool
    bounds: Mapping[str, tuple[Scalar, ...]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A search configuration.

    Parameters:
        space: what may vary.
        objectives: what candidates are scored by, each with the place where it is written.
        tasks: how tasks are run.
        scattered: begin at a random point instead of equal weights.
        pareto: keep objectives apart instead of adding them up.
        text: the configuration as it was read.
    """

    space: Space
    objectives: tuple[tuple[Objective, Place], ...]
    tasks: Tasks
    scattered: bool
    pareto: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class _Bounds(Form[tuple[Scalar, ...]]):
    noun: str = "a list of bounds"

    def _expected(self) -> str:
        return "`[low, high]`, or all values of a parameter that is no number, such as `[false, true]`"

    def _read(self, node: Node, reading: Reading) -> tuple[Scalar, ...] | None:
        values = [item.value for item in node.items if isinstance(item, Leaf)] if isinstance(node, Listing) else []
        known = tuple(value for value in values if value is not None)
        complete = isinstance(node, Listing) and len(known) == len(node.items) >= 2
        return known if complete else self.refuse(node, reading)

    def _schema(self) -> Json:
        return {"type": "array", "minItems": 2}


@dataclass(frozen=True, slots=True)
class _Entry(Form[Source]):
    """A model of the genome, which has no parameters of its own."""

    noun: str = "a model reference"

    def _expected(self) -> str:
        return REFERENCE.expected

    def _parts(self) -> tuple[Form[Any], ...]:
        return (REFERENCE,)

    def _read(self, node: Node, reading: Reading) -> Source | None:
        found = REFERENCE.read(node, reading)
        return None if found is None else Source(found, None, Parameters({}, f"{node.path}.parameters"), node.path)

    def _schema(self) -> Json:
        return REFERENCE.schema()


def _build_space(fields: Fields) -> Space | None:
    recipe = build_recipe(fields)
    if recipe is None or fields.broken(*fields.values):
        return None
    for name, setting in recipe.parameters.settings.items():
        if isinstance(setting, Gradient):
            what = f"`{name}` has a list of values: what is fixed here is one value for all layers"
            fields.error(what, hint=f"`bounds: {{{name}: [low, high]}}` to search it", path=f"{fields.path}.parameters")
    return Space(
        recipe=recipe,
        written={},
        groups=fields.optional("layer_granularity") or 0,
        normalize=fields.optional("normalize"),
        negative=bool(fields.optional("allow_negative_weights")),
        filters=fields.optional("filters") or (),
        smooth=bool(fields.optional("smooth")),
        bounds=fields.optional("bounds") or {},
    )


def _build_experiment(fields: Fields) -> Experiment | None:
    if fields.broken(*fields.values):
        return None
    read = [*(fields.optional("tasks") or ()), *(fields.optional("objectives") or ())]
    file = fields.reading.file
    found = tuple((judge, Place(node.path, file, node.line)) for judge, node in read)
    chat, multiturn = (fields.optional(name) is not False for name in ("apply_chat_template", "fewshot_as_multiturn"))
    limit, shots = fields.optional("limit"), fields.optional("num_fewshot")
    tasks = Tasks(limit, shots, bool(fields.optional("shuffle")), chat, multiturn)
    _refuse_repeats(fields, found)
    scattered, pareto = bool(fields.optional("random_init")), bool(fields.optional("pareto"))
    return Experiment(fields.values["genome"], found, tasks, scattered, pareto)


def _refuse_repeats(fields: Fields, found: tuple[tuple[Objective, Place], ...]) -> None:
    names = [judge.name for judge, _ in found]
    for judge, place in found:
        if names.count(judge.name) > 1:
            fields.error(f"two objectives are called `{judge.name}`", "`name:` to tell them apart", path=place.path)


_RECIPE_KEYS = {key.name: key for key in RECIPE.keys}
_LISTED = _Entry()
_GROUPS: Form[Any] = Either(
    "a number of layers",
    Many(Whole("a number of layers (a whole number from 1)", 1), "a list of numbers of layers"),
    Whole("a number of layers (a whole number from 0)", 0),
    lambda node: isinstance(node, Listing),
)

GENOME = Record(
    "the genome",
    (
        Key("models", Many(_LISTED, "a list of models"), "models to merge", required=True),
        *(_RECIPE_KEYS[name] for name in (*_ALSO, *_RULES)),
        replace(_RECIPE_KEYS["parameters"], about="parameters that stay as they are"),
        Key("layer_granularity", _GROUPS, "layers in a group with values of its own; 0 or nothing for one group"),
        Key("normalize", Flag(), "the parameter of this name; as the method's own rule is, if it is not given"),
        Key("allow_negative_weights", Flag(), "whether weights below 0 are tried"),
        Key("filters", Many(Text("a filter", some), "a list of filters"), "parts with values of their own"),
        Key("smooth", Flag(), "whether values change evenly over the layers, instead of from group to group"),
        Key("bounds", Named(_Bounds(), "bounds by parameter"), "what is searched beside the usual, and how far"),
    ),
    _build_space,
)
EXPERIMENT = Record(
    "the top level of the configuration",
    (
        Key("genome", GENOME, "what is merged, and what may vary", required=True),
        Key("tasks", Many(Task(), "a list of tasks"), "tasks of lm-eval"),
        Key("objectives", Many(OBJECTIVE, "a list of objectives"), "what else candidates are scored by"),
        Key("limit", Whole("a number of examples (from 1)", 1), "examples of each task"),
        Key("num_fewshot", Whole("a number of examples (from 0)", 0), "examples in the prompt"),
        Key("shuffle", Flag(), "whether tasks are shuffled before `limit` cuts them"),
        Key("random_init", Flag(), "whether the search begins at a random point"),
        Key("apply_chat_template", Flag(), "whether prompts are wrapped in the chat template, if there is one"),
        Key("fewshot_as_multiturn", Flag(), "whether examples in the prompt are turns of a conversation"),
        Key("pareto", Flag(), "whether objectives are kept apart: a front instead of a best one"),
    ),
    _build_experiment,
)
"""Every key of a search configuration."""


def read_experiment(
    text: str, file: str | None = None, objectives_needed: bool = True
) -> tuple[Experiment | None, Findings]:
    r"""Read a search configuration and report every mistake in its structure at once.

    Parameters:
        text: the configuration, one YAML document.
        file: its name, for messages.
        objectives_needed: whether a configuration without any is a mistake.

    Returns:
        The configuration, or None if it cannot be read; and the findings. Bad input is never raised.

    Example:
        >>> _, findings = read_experiment("genome: {models: [a, b], merge_method: linear}\ntaks: [arc]")
        >>> [problem.hint for problem in findings.errors]
        ['`tasks`']
    """
    document = read_document(text, file=file, vocabulary=VOCABULARY, language=EXPERIMENT)
    found, findings = document.meaning, document.findings
    if found is None:
        return None, findings
    if objectives_needed and not found.objectives:
        hint = "`tasks:` with a list of tasks of lm-eval, or `objectives:` with `- perplexity: FILE`"
        findings.error("there is nothing to score candidates by", Place("", file, 1), "`tasks` or `objectives`", hint)
    lines = {**document.lines, "base_model": document.lines.get("genome.base_model", 1)}
    recipe = replace(found.space.recipe, text=text, file=file, lines=lines)
    space = replace(found.space, recipe=recipe, written=yaml.safe_load(text)["genome"])
    return replace(found, space=space, text=text), findings
