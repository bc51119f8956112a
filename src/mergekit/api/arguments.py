"""What is wrong with the arguments of a merge in memory; the method with its parameters, if nothing is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit.api.notices import warn
from mergekit.errors import Findings, Problem, RecipeError
from mergekit.methods import METHODS, Method, MethodError, Parameter
from mergekit.methods.declarations import flaws
from mergekit.plan.methods import installed_method, installed_methods
from mergekit.recipe import coerce, nearest


def method_class(method: str | type[Method]) -> type[Method]:
    """The class of a method: of mergekit, of an installed package, or the one that is given.

    Raises:
        RecipeError: no method has this name.
        MethodError: an installed method cannot be loaded, or what is given is no method.
    """
    if not isinstance(method, str):
        for flaw in flaws(method):
            raise MethodError(f"{method!r} {flaw}", expected="the name of a method, or the class of one")
        return method
    found = METHODS.get(method) or installed_method(method)
    if found is None:
        known = [*METHODS, *installed_methods()]
        close = nearest(method, known)
        hint = f"`{close}`" if close else None
        raise RecipeError([Problem(f"unknown merge method `{method}`", "method", ", ".join(known), hint)])
    return found


def takes_first_as_base(method: type[Method], count: int) -> bool:
    """Whether the first of so many models is the base if no other is given: that of methods on a base and one model."""
    needs = method.needs
    return needs.base == "required" and needs.least == needs.most == 1 and count == 2


def prepared(method: type[Method], parameters: Mapping[str, Any], models: int, based: bool) -> Method:
    """A method with its parameters.

    Parameters:
        method: its class.
        parameters: by the names that recipes use: one value, or a list with one for each model.
        models: how many, the base not counted.
        based: whether there is a base.

    Raises:
        RecipeError: a parameter is unknown, missing or wrong, or the number of models is; all mistakes are in it.
        TypeError: `parameters` is no mapping.
    """
    if not isinstance(parameters, Mapping):
        raise TypeError(f"`parameters` is a `{type(parameters).__name__}`: expected a mapping of names to values")
    findings = Findings()
    _check_models(method, models, based, findings)
    _check_names(method, parameters, findings)
    reading = _Reading(method, parameters, models, findings)
    values = {parameter.field: reading.value(parameter) for parameter in method.parameters()}
    findings.raise_errors()
    made = method(**values)
    for mistake in made.mistakes():
        findings.error(mistake, "parameters")
    findings.raise_errors()
    for remark in made.remarks():
        warn(remark)
    return made


def _check_models(method: type[Method], models: int, based: bool, findings: Findings) -> None:
    needs = method.needs
    if needs.base == "required" and not based:
        findings.error(f"{method.name} needs a base model", "base", str(needs))
    if models < needs.least or (needs.most is not None and models > needs.most):
        besides = " besides the base" if based else ""
        findings.error(
            f"{method.name} does not merge {models} model{'' if models == 1 else 's'}{besides}", None, str(needs)
        )


def _check_names(method: type[Method], parameters: Mapping[str, Any], findings: Findings) -> None:
    own = [parameter.name for parameter in method.parameters()]
    for name in parameters:
        if name not in own:
            close = nearest(name, own)
            expected = f"one of {', '.join(own)}" if own else "no parameters"
            findings.error(f"unknown parameter `{name}`", "parameters", expected, f"`{close}`" if close else None)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reads the values of parameters, collecting what is wrong."""

    method: type[Method]
    parameters: Mapping[str, Any]
    models: int
    findings: Findings

    def value(self, parameter: Parameter) -> Any:
        """The value of a parameter, one for each model if it is of that kind; something else after an error."""
        place = f"parameters.{parameter.name}"
        given = self.parameters.get(parameter.name, parameter.default)
        if parameter.required and parameter.name not in self.parameters:
            hint = f"`{{{parameter.name!r}: VALUE}}`"
            self.findings.error(f"{self.method.name} needs the parameter `{parameter.name}`", "parameters", hint=hint)
            return None
        given = given.tolist() if hasattr(given, "tolist") else given
        if isinstance(given, list | tuple):
            return self._listed(parameter, given, place)
        value = self._checked(parameter, given, place)
        return (value,) * self.models if parameter.per_model else value

    def _listed(self, parameter: Parameter, given: list[Any] | tuple[Any, ...], place: str) -> Any:
        if not parameter.per_model:
            what = f"`{parameter.name}` is one value for all models, and cannot differ between them"
            self.findings.error(what, place, "one value")
        elif len(given) != self.models:
            what = f"`{parameter.name}` has {len(given)} values for {self.models} models"
            self.findings.error(what, place, "one value, or one for each model in their order, the base not counted")
        return tuple(self._checked(parameter, value, f"{place}[{index}]") for index, value in enumerate(given))

    def _checked(self, parameter: Parameter, value: Any, place: str) -> Any:
        if not isinstance(value, bool | int | float | str):
            what = f"`{parameter.name}`: a `{type(value).__name__}` is no value"
            self.findings.error(what, place, f"a value of type {parameter.kind}")
            return None
        try:
            found = coerce(value, parameter.kind)
        except ValueError as error:
            self.findings.error(f"`{parameter.name}`: {error}", place, f"a value of type {parameter.kind}")
            return None
        if not parameter.fits(found):
            self.findings.error(f"`{parameter.name}` is {value}, out of range", place, parameter.bounds)
        return found
