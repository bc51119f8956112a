"""What goes where: the recipe's models and slices as runs of output layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekit.errors import Findings
from mergekit.layout import ModuleLayout
from mergekit.methods import Method
from mergekit.plan.models import Model
from mergekit.plan.parameters import shared_by_all
from mergekit.recipe import ModelRef, Parameters, Recipe, Slice, Source


@dataclass(frozen=True, slots=True)
class Input:
    """A model's part in a segment.

    Parameters:
        model: index of the model.
        first: its layer that goes into the segment's first layer.
        parameters: settings of this model in this segment.
    """

    model: int
    first: int
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of output layers of one module with the same inputs.

    Parameters:
        inputs: the models in the order of the recipe.
        base: the base among `inputs`, or None.
        layers: number of output layers.
        levels: settings for all inputs, the nearest first.
        path: path of the slice in the recipe, empty for whole models.
    """

    inputs: tuple[Input, ...]
    base: Input | None
    layers: int
    levels: tuple[Parameters, ...]
    path: str


@dataclass(frozen=True, slots=True)
class ModuleSegments:
    """A module of the output.

    Parameters:
        module: its layout in the donor.
        segments: runs of layers from first to last; one if the module is not sliced.
        sliced: whether the recipe cuts the module's layers.
    """

    module: ModuleLayout
    segments: tuple[Segment, ...]
    sliced: bool


@dataclass(slots=True)
class Arranger:
    """Arranges the models of a recipe into segments, collecting what is wrong."""

    recipe: Recipe
    method: type[Method]
    models: Sequence[Model]
    findings: Findings

    def arrange(self) -> tuple[ModuleSegments, ...]:
        """All modules of the output, in the donor's order."""
        recipe, donor = self.recipe, self.models[0].layout
        if recipe.models:
            return tuple(self._whole(module, recipe.models, ()) for module in donor.modules)
        if recipe.slices:
            return self._top_level_slices()
        self._refuse_unknown_modules()
        return tuple(self._named_module(module) for module in donor.modules)

    def _top_level_slices(self) -> tuple[ModuleSegments, ...]:
        donor = self.models[0].layout
        stacked = [module for module in donor.modules if module.stack]
        if any(module is not donor.main and not module.name.endswith("_tower") for module in stacked):
            names = ", ".join(f"`{module.name}`" for module in stacked)
            self.findings.error(
                "`slices` does not say which part of the model it cuts",
                self.recipe.place("slices"),
                f"`modules:` with slices for one of {names}",
            )
            return ()
        sliced = self._sliced(donor.main, self.recipe.slices, ())
        rest = [module for module in donor.modules if module is not donor.main]
        for module in rest:
            if not all(self._lacks(model.ref, module) for model in self.models[1:]):
                self.findings.notice(f"`{module.name}` is taken from {self.models[0].ref}: it is no part of the slices")
        return (sliced, *(self._from_donor(module) for module in rest))

    def _refuse_unknown_modules(self) -> None:
        donor = self.models[0].layout
        known = ", ".join(f"`{module.name}`" for module in donor.modules)
        for module in self.recipe.modules:
            if donor.module(module.name) is None:
                place = self.recipe.place(module.path)
                self.findings.error(f"the model has no module `{module.name}`", place, known)

    def _named_module(self, module: ModuleLayout) -> ModuleSegments:
        donor = self.models[0].layout
        for entry in self.recipe.modules:
            if donor.module(entry.name) is module:
                if entry.models:
                    return self._whole(module, entry.models, (entry.parameters,))
                return self._sliced(module, entry.slices, (entry.parameters,))
        self.findings.notice(f"module `{module.name}` is not in the recipe and is taken from {self.models[0].ref}")
        return self._from_donor(module)

    def _from_donor(self, module: ModuleLayout) -> ModuleSegments:
        layers = module.stack.count if module.stack else 0
        inputs = (Input(0, 0, Parameters({}, "")),)
        return ModuleSegments(module, (Segment(inputs, None, layers, (), ""),), sliced=False)

    def _lacks(self, ref: ModelRef, module: ModuleLayout) -> bool:
        return all(key[0] != module.name for key in self.models[self._index(ref)].views)

    def _whole(self, module: ModuleLayout, sources: Sequence[Source], levels: tuple[Parameters, ...]) -> ModuleSegments:
        lacking = [str(source.model) for source in sources if self._lacks(source.model, module)]
        if lacking and module is not self.models[0].layout.main:
            donor = self.models[0].ref
            self.findings.notice(f"`{module.name}` is taken from {donor}: it is not in {', '.join(lacking)}")
            return self._from_donor(module)
        inputs = [Input(self._index(source.model), 0, source.parameters) for source in sources]
        base = self._base_of(inputs, self._base_ref(None, sources), "")
        if base is not None and base not in inputs:
            inputs.append(base)
        layers = module.stack.count if module.stack else 0
        return ModuleSegments(module, (self._segment(inputs, base, layers, levels, ""),), sliced=False)

    def _sliced(self, module: ModuleLayout, slices: Sequence[Slice], levels: tuple[Parameters, ...]) -> ModuleSegments:
        segments = tuple(self._slice(module, piece, levels) for piece in slices)
        return ModuleSegments(module, segments, sliced=True)

    def _slice(self, module: ModuleLayout, piece: Slice, levels: tuple[Parameters, ...]) -> Segment:
        fitting = [self._fits(module, source) for source in piece.sources]
        inputs = [
            Input(self._index(source.model), source.layers.start if source.layers else 0, source.parameters)
            for source in piece.sources
        ]
        base = self._base_of(inputs, self._base_ref(piece.base_model, piece.sources), piece.path)
        count = len(piece.sources[0].layers or ()) if piece.sources and all(fitting) else 0
        return self._segment(inputs, base, count, (piece.parameters, *levels), piece.path)

    def _segment(
        self, inputs: list[Input], base: Input | None, layers: int, levels: tuple[Parameters, ...], path: str
    ) -> Segment:
        self._check_count(inputs, base, path)
        own = [entry.parameters for entry in inputs if entry is not base]
        shared = [parameter.name for parameter in self.method.parameters() if not parameter.per_model]
        alike = {name: setting for name in shared if (setting := shared_by_all(name, own)) is not None}
        return Segment(tuple(inputs), base, layers, (Parameters(alike, path), *levels, self.recipe.parameters), path)

    def _fits(self, module: ModuleLayout, source: Source) -> bool:
        layers = source.layers or range(0)
        own = self.models[self._index(source.model)].layout.module(module.name)
        count = own.stack.count if own and own.stack else 0
        if layers.stop > count:
            self.findings.error(
                f"layer range [{layers.start}, {layers.stop}) goes beyond the {count} layers of {source.model}",
                self.recipe.place(f"{source.path}.layer_range"),
                f"an end of at most {count}",
            )
        return layers.stop <= count

    def _check_count(self, inputs: Sequence[Input], base: Input | None, path: str) -> None:
        needs = self.method.needs
        if needs.base == "required" and base is None:
            return  # which is an error already
        count = len(inputs) - (base is not None)
        if count < needs.least or (needs.most is not None and count > needs.most):
            besides = " besides the base" if base is not None else ""
            self.findings.error(
                f"{self.method.name} does not merge {count} model{'' if count == 1 else 's'}{besides}",
                self.recipe.place(path or ("models" if self.recipe.models else "slices")),
                str(needs),
            )

    def _base_ref(self, own: ModelRef | None, sources: Sequence[Source]) -> ModelRef | None:
        """The base of a segment: its own, the recipe's, or for methods on two models the first of them."""
        needs = self.method.needs
        if needs.base == "ignored":
            return None
        if named := own or self.recipe.base_model:
            return named
        if needs.base == "required" and needs.least == needs.most == 1 and len(sources) == 2:
            first = sources[0].model
            self.findings.notice(f"no base_model is given: {self.method.name} takes the first model, {first}, as base")
            return first
        return None

    def _base_of(self, inputs: Sequence[Input], ref: ModelRef | None, path: str) -> Input | None:
        if ref is None:
            if self.method.needs.base == "required":
                what = f"{self.method.name} needs a base model"
                self.findings.error(what, self.recipe.place(path), "`base_model: MODEL`")
            return None
        index = self._index(ref)
        for entry in inputs:
            if entry.model == index:
                return entry
        if path and self.method.needs.base == "required":
            what = f"the base model {ref} is not among the sources of this slice"
            hint = (
                f"`- {{model: {ref}, layer_range: [first, end]}}` among the sources: it says which layers are the base"
            )
            self.findings.error(what, self.recipe.place(path), hint=hint)
        return Input(index, 0, Parameters({}, "")) if not path else None

    def _index(self, ref: ModelRef) -> int:
        return next(index for index, model in enumerate(self.models) if model.ref == ref)
