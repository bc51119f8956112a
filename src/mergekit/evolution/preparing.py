"""From a search configuration to a genome whose first recipe is known to merge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mergekit.api.options import MergeOptions, planning
from mergekit.config import rendered
from mergekit.errors import Findings, Place, Problem, RecipeError
from mergekit.evolution.drafting import Drafting
from mergekit.evolution.genome import Genome
from mergekit.evolution.harness import is_benchmark
from mergekit.evolution.language import Experiment, Space, read_experiment
from mergekit.evolution.objectives import Objective, TaskObjective
from mergekit.evolution.scoring import METRIC
from mergekit.plan import Model, plan_merge
from mergekit.plan.methods import find_method
from mergekit.plan.models import open_models
from mergekit.plan.parameters import check_parameters
from mergekit.recipe import Constant, matches, nearest

_UNLEASHED = "`--i-understand-the-depths-of-the-evils-i-am-unleashing`"


def prepare(
    text: str, file: str | None, options: MergeOptions, tasks: Sequence[str] = (), unleashed: bool = False
) -> tuple[Experiment, Genome, Findings]:
    """Read a search configuration, look at the models, and plan the first candidate.

    Parameters:
        text: the configuration, one YAML document.
        file: its name, for messages.
        options: of every merge.
        tasks: to score by instead of the configuration's tasks, with the metrics and weights that these have there.
        unleashed: whether public benchmarks may be searched on.

    Returns:
        The configuration, its genome, and warnings.

    Raises:
        RecipeError: the configuration has mistakes; all of them are in the error.
        MergekitError: the models do not go together.
    """
    experiment, findings = read_experiment(text, file, objectives_needed=not tasks)
    if experiment is None:
        findings.raise_errors(options.strict)
        raise AssertionError("what cannot be read is an error")
    experiment = _scored_by(experiment, tasks)
    check_objectives(experiment.objectives, options.allow_code, unleashed, findings)
    genome = _drafted(experiment.space, options, findings)
    findings.raise_errors(options.strict)
    if genome is None:
        raise AssertionError("a genome without mistakes is there")
    _plan_first(genome, options, file)
    return experiment, genome, findings


def _scored_by(experiment: Experiment, tasks: Sequence[str]) -> Experiment:
    """A configuration with other tasks."""
    if not tasks:
        return experiment
    known = {judge.name: (judge, place) for judge, place in experiment.objectives if isinstance(judge, TaskObjective)}
    others = [pair for pair in experiment.objectives if not isinstance(pair[0], TaskObjective)]
    own = [known.get(name, (TaskObjective(name, 1.0, metric=METRIC), Place("--task"))) for name in dict.fromkeys(tasks)]
    return replace(experiment, objectives=(*own, *others))


def check_objectives(
    objectives: Iterable[tuple[Objective, Place]], allow_code: bool, unleashed: bool, findings: Findings
) -> None:
    """Record objectives that must not be used without a word from the user.

    Parameters:
        objectives: each with its place.
        allow_code: whether functions and commands may run.
        unleashed: whether public benchmarks may be searched on.
        findings: where mistakes are recorded.
    """
    for objective, place in objectives:
        if objective.runs_code and not allow_code:
            what = f"`{objective.name}` runs code, which may do all that you may do"
            findings.error(what, place, hint="`--allow-code`, if you trust it")
        if isinstance(objective, TaskObjective) and is_benchmark(objective.name):
            what = f"`{objective.name}` is a public benchmark: a model that was searched on it proves nothing there"
            if unleashed:
                findings.warn(what, place)
            else:
                findings.error(what, place, "a task whose name ends in `_train`, or your own", _UNLEASHED)


def _drafted(space: Space, options: MergeOptions, findings: Findings) -> Genome | None:
    recipe = space.recipe
    method = find_method(recipe, findings, options.allow_code)
    models = open_models(recipe, findings, hub=planning(options).hub)
    if method is None or not models:
        return None
    required = {each.name: Constant(each.low or 0) for each in method.parameters() if each.required}  # are searched
    settings = {**required, **recipe.parameters.settings}
    check_parameters(replace(recipe, parameters=replace(recipe.parameters, settings=settings)), method, findings)
    if method.needs.base == "required" and recipe.base_model is None and method.needs.most != 1:
        findings.error(f"{method.name} needs a base model", recipe.place("genome"), "`base_model: MODEL`")
    _check_filters(space, models, findings)
    return Drafting(space, method, layers_of(models[0]), findings).genome()


def layers_of(model: Model) -> int:
    """Layers of a model, as slices count them."""
    stack = model.layout.main.stack
    return stack.count if stack else 0


def _check_filters(space: Space, models: Iterable[Model], findings: Findings) -> None:
    names = [name for model in models for name in model.names.values()]
    for index, text in enumerate(space.filters):
        if not any(matches(text, name) for name in names):
            parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
            close = nearest(text, parts)
            place = space.recipe.place(f"genome.filters[{index}]")
            expected = "a part of a tensor name, taken literally"
            findings.error(f"filter `{text}` matches no tensor", place, expected, close and f"`{close}`")


def _plan_first(genome: Genome, options: MergeOptions, file: str | None) -> None:
    """Plan the first candidate; what is wrong with it is wrong with the genome."""
    recipe = genome.space.recipe
    try:
        plan_merge(rendered(genome.decode(genome.start)), options=planning(options))
    except RecipeError as error:
        place = Place("genome", file, recipe.lines.get("genome"))
        told = (f"{each.what} (at {str(each.place).partition(' ')[0]} of the first recipe)" for each in error.problems)
        problems = [
            Problem(what, place, each.expected, each.hint) for what, each in zip(told, error.problems, strict=True)
        ]
        raise RecipeError(problems) from error
