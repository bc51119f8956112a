"""The recipe's parameters against what the method reads: names, levels, types, bounds, and values per tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit.errors import Findings
from mergekit.methods import METHODS, Method, Parameter
from mergekit.recipe import (
    ModelRef,
    Parameters,
    Recipe,
    Setting,
    Source,
    coerce,
    evaluate,
    filters,
    leaves,
    matches,
    nearest,
)

KNOWN = frozenset(parameter.name for method in METHODS.values() for parameter in method.parameters())
"""Names that some method reads."""

_IDLE = frozenset({"int8_mask"})
"""Names that published recipes have and that never had an effect."""


@dataclass(frozen=True, slots=True)
class Level:
    """One `parameters:` mapping and whose it is."""

    parameters: Parameters
    of_model: bool
    of_base: bool = False


def levels(recipe: Recipe) -> Iterator[Level]:
    """Every mapping of parameters in a recipe, in its order."""
    entries = recipe.every_entry()
    yield from (Level(entry.parameters, True, entry.model == recipe.base_model) for entry in entries)
    for piece in recipe.every_slice():
        base = piece.base_model or recipe.base_model
        yield from (Level(source.parameters, True, source.model == base) for source in piece.sources)
        yield Level(piece.parameters, False)
    yield from (Level(module.parameters, False) for module in recipe.modules)
    yield Level(recipe.parameters, False)


def groups(recipe: Recipe, based: bool) -> Iterator[tuple[Parameters, ...]]:
    """Parameters of models that stand side by side: one group for `models`, one for each slice.

    Parameters:
        recipe: the recipe.
        based: whether the base model stands apart, and is no model among others.
    """
    runs: list[tuple[Sequence[Source], ModelRef | None]] = [(recipe.models, None)]
    runs += [(piece.sources, piece.base_model) for piece in recipe.every_slice()]
    runs += [(module.models, None) for module in recipe.modules]
    for sources, own in runs:
        base = own or recipe.base_model
        yield tuple(source.parameters for source in sources if not (based and source.model == base))


def shared_by_all(name: str, group: Sequence[Parameters]) -> Setting | None:
    """The setting that every model of a group gives alike, or None."""
    settings = [parameters.settings.get(name) for parameters in group]
    return settings[0] if settings and all(setting == settings[0] for setting in settings) else None


def check_parameters(recipe: Recipe, method: type[Method], findings: Findings) -> None:
    """Record every parameter that the method does not read, cannot read, or that stands at the wrong level."""
    declared = {parameter.name: parameter for parameter in method.parameters()}
    for level in levels(recipe):
        for name, setting in level.parameters.settings.items():
            path = f"{level.parameters.path}.{name}"
            if name in declared:
                _check_values(recipe, declared[name], setting, path, findings)
                _check_level(recipe, declared[name], level, path, findings, method.needs.base != "ignored")
            elif not (name == "embed_slerp" and level.parameters is recipe.parameters):
                _report_unread(recipe, method, name, path, findings)
    given = {name for level in levels(recipe) for name in level.parameters.settings}
    for parameter in declared.values():
        if parameter.required and parameter.name not in given:
            report_missing(recipe, method, parameter.name, findings)


def report_missing(recipe: Recipe, method: type[Method], name: str, findings: Findings) -> None:
    """Record that a required parameter has no value."""
    what = f"{method.name} needs the parameter `{name}`"
    findings.error(what, recipe.place("parameters"), hint=f"`{name}: VALUE`")


def _report_unread(recipe: Recipe, method: type[Method], name: str, path: str, findings: Findings) -> None:
    own = [parameter.name for parameter in method.parameters()]
    listed = ", ".join(own) or "no parameters"
    close = None if name in KNOWN | _IDLE else nearest(name, own)
    if close:
        findings.error(f"unknown parameter `{name}`", recipe.place(path), f"one of {listed}", f"`{close}`")
    else:
        what = f"parameter `{name}` is not read by {method.name} and has no effect"
        findings.warn(what, recipe.place(path), f"one of {listed}")


def _check_level(
    recipe: Recipe, parameter: Parameter, level: Level, path: str, findings: Findings, based: bool
) -> None:
    if not level.of_model:
        return
    if parameter.per_model:
        if level.of_base and based:
            what = f"parameter `{parameter.name}` of the base model has no effect"
            findings.warn(what, recipe.place(path), "parameters of the models that are compared with it")
        return
    if any(level.parameters in group and shared_by_all(parameter.name, group) for group in groups(recipe, based)):
        findings.notice(f"`{parameter.name}` is one value for all models; it is given alike under each and counts once")
    elif level.of_base and based:
        findings.warn(f"parameter `{parameter.name}` of the base model has no effect", recipe.place(path))
    else:
        what = f"`{parameter.name}` is one value for all models, and cannot differ between them"
        hint = f"`parameters: {{{parameter.name}: …}}` at the top level or in the slice"
        findings.error(what, recipe.place(path), hint=hint)


def _check_values(recipe: Recipe, parameter: Parameter, setting: Setting, path: str, findings: Findings) -> None:
    for inner, value in leaves(setting):
        place = recipe.place(path + inner)
        try:
            converted = coerce(value, parameter.kind)
        except ValueError as error:
            findings.error(f"`{parameter.name}`: {error}", place, f"a value of type {parameter.kind}")
            continue
        if not parameter.fits(converted):
            findings.error(f"`{parameter.name}` is {value}, out of range", place, parameter.bounds)


def check_filters(recipe: Recipe, names: Iterable[str], findings: Findings) -> None:
    """Record every filter that matches no tensor of the merge."""
    known = list(names)
    settings = [
        (f"{level.parameters.path}.{name}", setting)
        for level in levels(recipe)
        for name, setting in level.parameters.settings.items()
    ]
    for path, setting in (*settings, *recipe.rules.items()):
        for inner, text in filters(setting):
            if not any(matches(text, tensor) for tensor in known):
                parts = sorted({part for tensor in known for part in tensor.split(".") if not part.isdigit()})
                close = nearest(text, parts)
                findings.error(
                    f"filter `{text}` matches no tensor",
                    recipe.place(path + inner),
                    "a part of a tensor name, taken literally",
                    f"`{close}`" if close else None,
                )


class MissingParameterError(Exception):
    """A required parameter has no value for some tensor."""


def resolve(parameter: Parameter, chain: Sequence[Parameters], tensor: str, depth: float) -> Any:
    """The value of a parameter for a tensor: the nearest level that yields one, else the default.

    Parameters:
        parameter: what is looked up.
        chain: levels, the nearest first.
        tensor: name that filters are matched with.
        depth: coordinate of gradients, 0 to 1.

    Raises:
        MissingParameterError: it is required and no level yields a value.
    """
    for level in chain:
        setting = level.settings.get(parameter.name)
        if setting is not None:
            value = evaluate(setting, tensor, depth, parameter.kind)
            if value is not None:
                return value
    if parameter.required:
        raise MissingParameterError(parameter.name)
    return parameter.default


def values_for(
    method: type[Method],
    shared: Sequence[Parameters],
    per_model: Sequence[tuple[Parameters, str]],
    tensor: str,
    depth: float,
) -> Mapping[str, Any]:
    """All parameters of a method for one output tensor, by field.

    Parameters:
        method: its class.
        shared: levels that hold for all inputs, the nearest first.
        per_model: for each input that has values of its own, its parameters and its name of the tensor.
        tensor: name of the output tensor.
        depth: coordinate of gradients, 0 to 1.

    Raises:
        MissingParameterError: a required parameter has no value.
    """
    values: dict[str, Any] = {}
    for parameter in method.parameters():
        if parameter.per_model:
            resolved = (resolve(parameter, (own, *shared), name, depth) for own, name in per_model)
            values[parameter.field] = tuple(resolved)
        else:
            values[parameter.field] = resolve(parameter, shared, tensor, depth)
    return values
