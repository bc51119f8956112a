"""The plan of a merge of adapters: which products take part in which module, and by which method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekit.checkpoint.hub import Hub
from mergekit.errors import Findings
from mergekit.layout import read_layout
from mergekit.lora.language import REFUSED, is_exact, read_adapters
from mergekit.lora.members import Member, ModuleFactors, open_members
from mergekit.methods import Method
from mergekit.plan.methods import find_method
from mergekit.plan.parameters import (
    MissingParameterError,
    check_filters,
    check_parameters,
    report_missing,
    values_for,
)
from mergekit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class AdapterMerge:
    """A merge of adapters before a weight is read.

    Parameters:
        recipe: what was asked for.
        method: its class.
        members: the adapters, in the recipe's order.
        methods: for every module the method with its parameters.
        rank: highest rank of the output, or None for what there is.
        seed: of random methods.
        findings: warnings and notices for the user.
    """

    recipe: Recipe
    method: type[Method]
    members: tuple[Member, ...]
    methods: Mapping[str, Method]
    rank: int | None
    seed: int
    findings: Findings

    @property
    def read_bytes(self) -> int:
        """Bytes of all adapters."""
        factors = [own for member in self.members for own in member.factors.values()]
        return sum(stored.spec.nbytes for own in factors for stored in (own.a, own.b))

    @property
    def biased(self) -> bool:
        """Whether some adapter has offsets of biases."""
        return any(own.bias is not None for member in self.members for own in member.factors.values())

    def factors(self, module: str) -> list[ModuleFactors | None]:
        """The factors of a module in each adapter; None in those that do not change it."""
        return [member.factors.get(module) for member in self.members]

    @property
    def exact(self) -> bool:
        """Whether the output is what the method makes of the dense deltas."""
        return all(is_exact(method) for method in self.methods.values())


def plan_adapter_merge(
    text: str,
    *,
    file: str | None = None,
    rank: int | None = None,
    seed: int = 0,
    strict: bool = False,
    allow_code: bool = False,
    hub: Hub | None = None,
) -> AdapterMerge:
    """Plan a merge of adapters; no weight is read.

    Parameters:
        text: the recipe, YAML.
        file: its name, for messages.
        rank: highest rank of the output.
        seed: of random methods.
        strict: treat warnings as errors.
        allow_code: run the Python file that `merge_method` names.
        hub: how adapters are taken from the hub.

    Raises:
        RecipeError: the recipe has mistakes, or an adapter cannot be read or merged; all of them are in the error.
        IncompatibleModelsError: the adapters are for models of other shapes.
    """
    recipe, findings = read_adapters(text, file=file)
    if recipe and recipe.method in REFUSED:
        findings.raise_errors()
    method = find_method(recipe, findings, allow_code) if recipe else None
    members = open_members(recipe, findings, hub) if recipe else ()
    if recipe and method:
        check_parameters(recipe, method, findings)
        _check_number(recipe, method, findings)
    findings.raise_errors(strict)
    assert recipe is not None
    assert method is not None
    modules = list(dict.fromkeys(module for member in members for module in member.factors))
    check_filters(recipe, [f"{module}.weight" for module in modules], findings)
    methods = _methods(recipe, method, modules, findings)
    plan = AdapterMerge(recipe, method, members, methods, rank, seed, findings)
    _remark(plan)
    findings.raise_errors(strict)
    return plan


def _check_number(recipe: Recipe, method: type[Method], findings: Findings) -> None:
    count, needs = len(recipe.models), method.needs
    if count < needs.least or (needs.most is not None and count > needs.most):
        most = "" if needs.most is None else f", at most {needs.most}"
        expected = f"at least {needs.least}{most} adapters"
        findings.error(f"{method.name} does not merge {count} adapters", recipe.place("models"), expected)


def _methods(recipe: Recipe, method: type[Method], modules: Sequence[str], findings: Findings) -> dict[str, Method]:
    """The method of every module with its parameters; what is wrong with them is recorded."""
    layout = read_layout({f"{module}.weight": (2, 2) for module in modules}, {})
    heights = {one.name: one.stack.count for one in layout.modules if one.stack}
    made: dict[str, Method] = {}
    for module in modules:
        name, part = f"{module}.weight", layout.parts[f"{module}.weight"]
        last = heights.get(part.module, 1) - 1
        depth = 0.0 if part.layer is None else part.layer / last if last else 1.0
        per_model = [(entry.parameters, name) for entry in recipe.models]
        try:
            made[module] = method(**values_for(method, [recipe.parameters], per_model, name, depth))
        except MissingParameterError as error:
            report_missing(recipe, method, error.args[0], findings)
            break
        except ValueError as error:
            findings.error(f"a gradient has no valid value everywhere: {error}", recipe.place("parameters"))
            break
    for one in made.values():
        for mistake in one.mistakes():
            findings.error(mistake, recipe.place("parameters"))
        for remark in one.remarks():
            findings.warn(remark, recipe.place("parameters"))
    return made


def _remark(plan: AdapterMerge) -> None:
    if not plan.exact:
        plan.findings.notice(
            f"{plan.method.name} looks at entries of the common core space of the adapters, not at those of the dense "
            "deltas: the result is not that of a merge of whole models"
        )
    for member in plan.members:
        lacking = [module for module in plan.methods if module not in member.factors]
        if lacking:
            plan.findings.notice(f"{member.name} changes nothing about {len(lacking)} modules, such as {lacking[0]}")
