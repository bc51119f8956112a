"""What may vary: one gene for each value, and the recipe that values stand for."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import PurePath
from typing import Any

from mergekit.errors import Findings
from mergekit.evolution.language import Space
from mergekit.methods import Method, Parameter
from mergekit.recipe import Scalar, coerce, nearest

_LOGITS = (-4.0, 4.0)  # of models that compete for a slice; a difference of 8 is all or nothing
_PEER = {"linear": True, "task_arithmetic": False, "ties": True, "dare_ties": True, "slerp": False}
"""Methods of the peer, whose recipes say `normalize`, and what they say without being told."""


@dataclass(frozen=True, slots=True)
class Gene:
    """One value that may vary.

    Parameters:
        name: unique, for people.
        parameter: of the method.
        group: index of the group of layers.
        model: index, or None if the parameter has one value for all models.
        filter: what tensor names contain, or None for all others.
        choices: all its values, or none if it is a number.
        low, high: bounds of the number.
        start: where the search begins.
        folded: whether values below 0 stand for those above.
    """

    name: str
    parameter: Parameter
    group: int
    model: int | None
    filter: str | None
    choices: tuple[Scalar, ...]
    low: float
    high: float
    start: Scalar
    folded: bool

    @property
    def varies(self) -> bool:
        """Whether it is a number that is not fixed by its bounds."""
        return not self.choices and self.low < self.high

    def value(self, raw: Scalar) -> Scalar:
        """What stands in the recipe."""
        if self.choices:
            return raw
        number = abs(float(raw)) if self.folded else float(raw)
        low, high = self.parameter.low, self.parameter.high
        number = max(-math.inf if low is None else low, min(math.inf if high is None else high, number))
        return round(number) if self.parameter.kind == "int" else number

    def anywhere(self, draw: random.Random) -> Scalar:
        """A random start."""
        if self.choices:
            return draw.choice(self.choices)
        number = draw.uniform(self.low, self.high)
        return round(number) if self.parameter.kind == "int" else number


@dataclass(frozen=True, slots=True)
class Genome:
    """Genes, and how they become a recipe.

    The genes of one group of layers follow each other: model by model, in each filter by filter (those of all other
    tensors last), in each parameter by parameter; then what all models share.

    Parameters:
        space: what was asked for.
        method: the class.
        edges: first layers of the groups, and the number of layers.
        genes: what may vary.
    """

    space: Space
    method: type[Method]
    edges: tuple[int, ...]
    genes: tuple[Gene, ...]

    @property
    def start(self) -> tuple[Scalar, ...]:
        """Where the search begins: equal weights, and the defaults of other parameters."""
        return tuple(gene.start for gene in self.genes)

    def scattered(self, seed: int) -> tuple[Scalar, ...]:
        """A random point within the bounds."""
        draw = random.Random(seed)
        return tuple(gene.anywhere(draw) for gene in self.genes)

    @property
    def competing(self) -> bool:
        """Whether the models of each group compete, and the two best are merged."""
        return competes(self.space, self.method)

    def decode(self, values: Sequence[Scalar]) -> dict[str, Any]:
        """The recipe that values stand for, with the user's own references.

        Parameters:
            values: one for each gene, in their order.

        Raises:
            ValueError: there are more or fewer.
        """
        if len(values) != len(self.genes):
            raise ValueError(f"{len(values)} values for {len(self.genes)} genes")
        written = self.space.written
        copied = ("base_model", "tokenizer_source", "tokenizer", "chat_template", "out_dtype", "embed_slerp")
        kept = {name: written[name] for name in (*copied, "on_missing", "on_shape_mismatch") if written.get(name)}
        found = dict(zip(self.genes, values, strict=True))
        return {
            "merge_method": written["merge_method"],
            **kept,
            "dtype": written.get("dtype") or "bfloat16",
            **(self._smooth(found) if self.space.smooth else self._sliced(found)),
        }

    def _shared(self) -> dict[str, Any]:
        """Parameters that do not vary."""
        own, fixed = self.space, self.space.written.get("parameters") or {}
        name, reads = own.recipe.method, {parameter.name for parameter in self.method.parameters()}
        searched = {gene.parameter.name for gene in self.genes}
        found: dict[str, Any] = {}
        if "normalize" not in searched and (name in _PEER or (own.normalize is not None and "normalize" in reads)):
            found["normalize"] = _PEER[name] if own.normalize is None else own.normalize
        return found | ({"int8_mask": True} if name in _PEER else {}) | fixed

    def _sliced(self, found: Mapping[Gene, Scalar]) -> dict[str, Any]:
        slices = [self._slice(group, span, found) for group, span in enumerate(pairwise(self.edges))]
        return {"slices": slices, **_parameters(self._shared())}

    def _slice(self, group: int, span: tuple[int, int], found: Mapping[Gene, Scalar]) -> dict[str, Any]:
        own = {gene: value for gene, value in found.items() if gene.group == group}
        models, base = self.space.written["models"], self._base()
        ranged: dict[str, Any] = {"layer_range": list(span)}
        if self.competing:
            return self._pair([float(value) for value in own.values()], ranged)
        sources = [{"model": name, **ranged, **self._of(own, index)} for index, name in enumerate(models)]
        sources += [{"model": base, **ranged}] if base is not None else []
        return {"sources": sources, **self._of(own, None)}

    def _pair(self, logits: Sequence[float], ranged: Mapping[str, Any]) -> dict[str, Any]:
        """The two models with the greatest values, and their softmax as `t`."""
        models = self.space.written["models"]
        first, second = sorted(range(len(logits)), key=lambda index: -logits[index])[:2]
        t = 1 / (1 + math.exp(logits[first] - logits[second]))
        weights = [1 - t, t] if self.space.written.get("tokenizer_source") else []
        sources = [{"model": models[index], **ranged} for index in (first, second)]
        for source, weight in zip(sources, weights, strict=False):
            source["parameters"] = {"weight": weight}
        return {"base_model": models[first], "sources": sources, "parameters": {"t": t}}

    def _smooth(self, found: Mapping[Gene, Scalar]) -> dict[str, Any]:
        models, base = self.space.written["models"], self._base()
        entries = [{"model": name, **self._of(found, index)} for index, name in enumerate(models)]
        entries += [{"model": base}] if base is not None else []
        own: dict[str, Any] = self._of(found, None)
        return {"models": entries, **_parameters(self._shared() | own.get("parameters", {}))}

    def _of(self, found: Mapping[Gene, Scalar], model: int | None) -> dict[str, Any]:
        """`parameters` of a model, or of all together."""
        own = {gene: gene.value(value) for gene, value in found.items() if gene.model == model}
        names = dict.fromkeys(gene.parameter.name for gene in own)
        return _parameters({name: self._setting(name, own) for name in names})

    def _setting(self, name: str, own: Mapping[Gene, Scalar]) -> Any:
        filters = (*self.space.filters, None)
        cases = {
            each: [own[gene] for gene in own if gene.parameter.name == name and gene.filter == each] for each in filters
        }
        series = {each: values[0] if len(values) == 1 else values for each, values in cases.items()}
        if len(series) == 1:
            return series[None]
        return [{**({"filter": each} if each is not None else {}), "value": value} for each, value in series.items()]

    def _base(self) -> Any:
        """The base as it is written, if it is to be added to the models."""
        base = self.space.recipe.base_model
        listed = any(source.model == base for source in self.space.recipe.models)
        absent = base is None or listed or self.method.needs.base == "ignored"
        return None if absent else self.space.written["base_model"]


def _parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"parameters": dict(settings)} if settings else {}


def competes(space: Space, method: type[Method]) -> bool:
    """Whether models compete for each group of layers: SLERP merges two, of however many there are."""
    return method.name == "slerp" and not {"t"} & {*space.bounds, *space.recipe.parameters.settings}


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
