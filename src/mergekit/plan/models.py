"""The models of a recipe, opened: headers and configs, no weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergekit.adapters import Adapter
from mergekit.checkpoint import Checkpoint
from mergekit.checkpoint.hub import ROOM, Hub
from mergekit.errors import Findings
from mergekit.layout import Layout, Part, align_names, named_as, read_layout
from mergekit.plan.opening import Opened, open_reference
from mergekit.plan.views import View, fuse_experts
from mergekit.plan.weights import Weights, stay_packed
from mergekit.recipe import ModelRef, Recipe

Key = tuple[str, int | None, str]
"""Where a tensor stands in any model of a merge: module, layer, name within."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a merge.

    Parameters:
        ref: as the recipe names it.
        checkpoint: its tensors and config.
        layout: its structure, with tensors named as in the donor.
        views: its tensors by their place in the structure.
        names: the donor's names for them.
        left_out: its tensors that are no weights, by the reason.
        packed: whether quantised tensors are seen as they are stored, and config.json stays true about them.
        adapter: what is applied to the stored tensors, or None.
        untied: whether the adapter gives it an output head, though its config says that it has none.
    """

    ref: ModelRef
    checkpoint: Checkpoint
    layout: Layout
    views: Mapping[Key, View]
    names: Mapping[Key, str]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    packed: bool = False
    adapter: Adapter | None = None
    untied: bool = False

    @property
    def tied(self) -> bool:
        """Whether loaders use its embedding as output head."""
        return self.layout.tied and not self.untied

    def part(self, key: Key) -> Part | None:
        """What the layout says about the tensor at a place, if the model has one there."""
        return self.layout.parts.get(self.names.get(key, ""))

    def own_name(self, key: Key) -> str:
        """What this model calls the tensor at a place, or would call it."""
        return self.views[key].spec.name if key in self.views else _written(self.layout, key)

    @property
    def head(self) -> Key | None:
        """Where the output head stands; None if loaders use the embedding."""
        name = self.layout.head
        return _key(self.layout, name) if name and not self.tied else None

    @property
    def embedding(self) -> View | None:
        """The input embedding, which serves as output head where there is none."""
        name = self.layout.embedding
        return self.views.get(_key(self.layout, name)) if name else None


def _written(layout: Layout, key: Key) -> str:
    module = layout.module(key[0])
    if key[1] is None or module is None or module.stack is None:
        return key[2]
    return module.stack.name(key[1], key[2])


def _key(layout: Layout, name: str) -> Key:
    part = layout.parts[name]
    return (part.module, part.layer, part.suffix)


def _model(
    opened: Opened,
    weights: Weights,
    donor_names: Sequence[str],
    fused: bool,
    packed: bool,
    donor: Model | None = None,
) -> Model:
    renamed = align_names(weights.views, donor_names)
    shapes = {renamed[name]: view.spec.shape for name, view in weights.views.items()}
    layout = read_layout(shapes, opened.checkpoint.config)
    if donor is not None:
        layout = named_as(layout, donor.layout)
    keys = {_key(layout, renamed[name]): name for name in weights.views}
    views = {key: weights.views[name] for key, name in keys.items()}
    names = {key: renamed[name] for key, name in keys.items()}
    if fused:
        views = _with_fused_experts(views)
        names = {key: names.get(key) or _written(layout, key) for key in views}
    return Model(
        opened.ref,
        opened.checkpoint,
        layout,
        views,
        names,
        weights.left_out,
        packed,
        opened.adapter,
        weights.untied,
    )


def _with_fused_experts(views: Mapping[Key, View]) -> dict[Key, View]:
    layers: dict[tuple[str, int | None], dict[str, View]] = {}
    for (module, layer, suffix), view in views.items():
        layers.setdefault((module, layer), {})[suffix] = view
    fused: dict[Key, View] = {}
    for (module, layer), own in layers.items():
        merged = own if layer is None else fuse_experts(own)
        fused |= {(module, layer, suffix): view for suffix, view in merged.items()}
    return fused


def open_models(recipe: Recipe, findings: Findings, fused: bool = False, hub: Hub | None = None) -> tuple[Model, ...]:
    """Open every model that the recipe names, the donor of config and names first.

    Models that cannot be opened are recorded as errors of the recipe, at the place that names them; then the result
    is empty.

    Parameters:
        recipe: the recipe.
        findings: where errors and remarks are recorded.
        fused: whether the matrices of all experts of a layer are seen as one tensor each.
        hub: how models are taken from the hub.
    """
    refs = recipe.references()
    opened = [found for ref in refs if (found := open_reference(recipe, ref, findings, hub or Hub()))]
    if len(opened) < len(refs):
        return ()
    packed = stay_packed(recipe, [one.checkpoint for one in opened])
    weights = [own for one in opened if (own := one.weights(packed, findings))]
    if len(weights) < len(refs):
        return ()
    names = list(weights[0].views)
    donor = _model(opened[0], weights[0], names, fused, packed)
    rest = zip(opened[1:], weights[1:], strict=True)
    return (donor, *(_model(one, own, names, fused, packed, donor) for one, own in rest))


def streaming_room(models: Sequence[Model], hub: Hub) -> int:
    """Bytes of memory for weights that come from the hub while they are merged; 0 if none do.

    Parameters:
        models: of the merge.
        hub: how they are taken from the hub.
    """
    return ROOM if hub.stream and any(model.checkpoint.remote for model in models) else 0
