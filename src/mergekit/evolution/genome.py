"""One gene for each value that may vary, and the recipe that values stand for."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mergekit.evolution.language import Space
from mergekit.methods import Method, Parameter
from mergekit.recipe import Scalar

_NORMALIZED = {"linear": True, "task_arithmetic": False, "ties": True, "dare_ties": True}
"""What `normalize` is where nobody says so, as elsewhere."""


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
        """Parameters that do not vary; what the method would not read is not written."""
        own, fixed = self.space, self.space.written.get("parameters") or {}
        searched = {gene.parameter.name for gene in self.genes}
        free = {parameter.name for parameter in self.method.parameters()} - searched
        wanted = _NORMALIZED.get(self.method.name) if own.normalize is None else own.normalize
        return ({"normalize": wanted} if "normalize" in free and wanted is not None else {}) | fixed

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
