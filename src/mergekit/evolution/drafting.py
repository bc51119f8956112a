"""From what a search configuration says to genes with bounds and a start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import PurePath

from mergekit.errors import Findings
from mergekit.evolution.genome import Gene, Genome, competes
from mergekit.evolution.language import Space
from mergekit.methods import Method, Parameter
from mergekit.recipe import Scalar, coerce, nearest

_LOGITS = (-4.0, 4.0)  # of models that compete for a slice; a difference of 8 is all or nothing


@dataclass(frozen=True, slots=True)
class Drafting:
    """Makes the genome that a configuration asks for, collecting what is wrong with it.

    Parameters:
        space: what was asked for.
        method: the class.
        layers: of the models.
        findings: where mistakes are recorded.
    """

    space: Space
    method: type[Method]
    layers: int
    findings: Findings

    def genome(self) -> Genome | None:
        """The genome, or None after a mistake in its bounds."""
        before = len(self.findings.errors)
        self._check_bounds()
        if len(self.findings.errors) > before:
            return None
        if competes(self.space, self.method):
            self._check_competition()
        self._warn_of_idle()
        edges = self._edges()
        genes = tuple(gene for group in range(len(edges) - 1) for gene in self._group(group, edges))
        if not genes:
            names = [parameter.name for parameter in self.method.parameters()]
            hint = f"`bounds: {{{names[0]}: [LOW, HIGH]}}`" if names else None
            self._error(f"{self.method.name} has nothing to search", "merge_method", "a method with parameters", hint)
        return Genome(self.space, self.method, edges, genes)

    def _error(self, what: str, path: str, expected: str | None = None, hint: str | None = None) -> None:
        self.findings.error(what, self.space.recipe.place(f"genome.{path}"), expected, hint)

    def _check_competition(self) -> None:
        space, models = self.space, [source.model for source in self.space.recipe.models]
        if space.smooth or space.filters:
            name = "smooth" if space.smooth else "filters"
            what = f"slerp merges two of the models in each group, and `{name}` does not go with that"
            self._error(what, name, hint=f"no `{name}`, or `bounds: {{t: [0, 1]}}` with two models")
        if space.recipe.base_model and space.recipe.base_model not in models:
            what = "slerp merges two of the models, and the base is none of them"
            self._error(what, "base_model", hint="moving it to `models`")
        if len(models) < 2:
            self._error("slerp merges two models", "models", "at least two models")

    def _warn_of_idle(self) -> None:
        """Warn of what the method has no use for."""
        own, names = self.space, {parameter.name for parameter in self.method.parameters()}
        idle = {"normalize": own.normalize is not None and "normalize" not in names}
        idle["allow_negative_weights"] = own.negative and "weight" not in names
        for name in [name for name, is_idle in idle.items() if is_idle]:
            what = f"`{name}` has no effect: {self.method.name} has no such parameter"
            self.findings.warn(what, own.recipe.place(f"genome.{name}"))

    def _check_bounds(self) -> None:
        known = {parameter.name: parameter for parameter in self.method.parameters()}
        for name, values in self.space.bounds.items():
            if name not in known:
                close = nearest(name, known)
                expected = f"one of {', '.join(known) or 'no parameters'}"
                what = f"{self.method.name} has no parameter `{name}`"
                self._error(what, f"bounds.{name}", expected, close and f"`{close}`")
            elif name in self.space.recipe.parameters.settings:
                self._error(f"`{name}` is fixed under `parameters`, and cannot be searched", f"bounds.{name}")
            elif name == "normalize" and self.space.normalize is not None:
                self._error("`normalize` is fixed in the genome, and cannot be searched", f"bounds.{name}")
            else:
                self._check_values(known[name], values)

    def _check_values(self, parameter: Parameter, values: Sequence[Scalar]) -> None:
        path = f"bounds.{parameter.name}"
        try:
            found = [coerce(value, parameter.kind) for value in values]
        except ValueError as error:
            self._error(f"`{parameter.name}`: {error}", path, f"values of type {parameter.kind}")
            return
        outside = [value for value, own in zip(values, found, strict=True) if not parameter.fits(own)]
        if outside:
            self._error(f"`{parameter.name}` is {outside[0]}, out of range", path, parameter.bounds)
        numbers = parameter.kind in ("float", "int")
        if numbers and (len(found) != 2 or not float(found[0]) < float(found[1])):
            self._error(f"`{parameter.name}` goes from a lower to a higher number", path, "`[low, high]`")

    def _edges(self) -> tuple[int, ...]:
        groups, layers = self.space.groups, self.layers
        if not layers:
            if groups or not self.space.smooth:
                self._error("the first model has no layers to group", "models", hint="`smooth: true`, without groups")
            return (0, 0)
        if isinstance(groups, int):
            if groups and layers % groups:
                divisors = ", ".join(str(size) for size in range(1, layers + 1) if layers % size == 0)
                what = f"the models have {layers} layers, which are not groups of {groups}"
                self._error(what, "layer_granularity", f"one of {divisors}, or a list that adds up to {layers}")
                return (0, layers)
            return tuple(range(0, layers + 1, groups or layers))
        if sum(groups) != layers:
            what = f"the groups have {sum(groups)} layers, and the models {layers}"
            self._error(what, "layer_granularity", f"a list that adds up to {layers}")
        if self.space.smooth and len(set(groups)) > 1:
            self._error("smooth values stand at equal distances, and the groups are unequal", "layer_granularity")
        return (0, *accumulate(groups))

    def searched(self) -> list[Parameter]:
        """The parameters that vary: numbers that each model has its own of, required ones, and those with bounds.

        Where there are none of these, all numbers.
        """
        fixed = {*self.space.recipe.parameters.settings, *({"normalize"} if self.space.normalize is not None else ())}
        free = [parameter for parameter in self.method.parameters() if parameter.name not in fixed]
        numbers = [parameter for parameter in free if parameter.kind == "float"]
        usual = [parameter for parameter in numbers if parameter.per_model or parameter.required]
        found = [parameter for parameter in free if parameter in usual or parameter.name in self.space.bounds]
        return found or numbers

    def _group(self, group: int, edges: Sequence[int]) -> Iterator[Gene]:
        searched, models = self.searched(), range(len(self.space.recipe.models))
        if competes(self.space, self.method):
            own = [parameter for parameter in searched if parameter.name == "t"]
            yield from (self._gene(own[0], group, edges, model, None) for model in models)
            return
        for model in (*models, None):
            for each in (*self.space.filters, None):
                for parameter in searched:
                    if parameter.per_model == (model is not None):
                        yield self._gene(parameter, group, edges, model, each)

    def _gene(
        self, parameter: Parameter, group: int, edges: Sequence[int], model: int | None, filter: str | None
    ) -> Gene:
        bounds = self.space.bounds.get(parameter.name, ())
        choices = self._choices(parameter, bounds)
        low, high = (0.0, 1.0) if choices else self._bounds(parameter, bounds)
        start = self._start(parameter, choices, low, high)
        layers = f"layers {edges[group]}-{edges[group + 1] - 1}" if len(edges) > 2 else None
        parts = (parameter.name, None if model is None else self._labels()[model], layers, filter)
        name = " ".join(part for part in parts if part)
        folded = low >= 0 and not competes(self.space, self.method)
        return Gene(name, parameter, group, model, filter, choices, low, high, start, folded)

    def _labels(self) -> list[str]:
        """Short names of the models: the last part of the path where that is enough."""
        paths = [str(source.model) for source in self.space.recipe.models]
        names = [PurePath(path).name for path in paths]
        counts = Counter(names)
        return [name if counts[name] == 1 else path for name, path in zip(names, paths, strict=True)]

    def _choices(self, parameter: Parameter, bounds: Sequence[Scalar]) -> tuple[Scalar, ...]:
        if parameter.kind == "bool":
            return tuple(coerce(value, "bool") for value in bounds) if bounds else (False, True)
        return tuple(bounds) if parameter.kind == "str" else ()

    def _bounds(self, parameter: Parameter, bounds: Sequence[Scalar]) -> tuple[float, float]:
        """The user's, else the declared ones, else from 0 as far as sensible."""
        if len(bounds) == 2 and all(isinstance(coerce(bound, parameter.kind), int | float) for bound in bounds):
            return float(bounds[0]), float(bounds[1])
        if competes(self.space, self.method):
            return _LOGITS
        high = self._farthest(parameter) if parameter.high is None else float(parameter.high)
        low = 0.0 if parameter.low is None else float(parameter.low)
        return (-high, high) if self.space.negative and parameter.name == "weight" else (low, high)

    def _farthest(self, parameter: Parameter) -> float:
        """Twice the default; weights of several models share what one could have, and more of all ruins a merge."""
        if parameter.name == "weight" and len(self.space.recipe.models) > 1:
            return 1.0
        return 2.0 * (parameter.default or 0.5) if isinstance(parameter.default, int | float) else 1.0

    def _start(self, parameter: Parameter, choices: Sequence[Scalar], low: float, high: float) -> Scalar:
        if choices:
            return next((choice for choice in choices if choice == parameter.default), choices[0])
        if parameter.name == "weight" or competes(self.space, self.method):
            wanted = 1 / len(self.space.recipe.models)
        else:
            wanted = (low + high) / 2 if parameter.default is None else float(parameter.default)
        number = min(high, max(low, wanted))
        return round(number) if parameter.kind == "int" else number
