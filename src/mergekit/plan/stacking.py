"""Stacks of slices that a model's other tensors do not allow."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit.errors import UnsupportedError
from mergekit.layout import packed_by_layer
from mergekit.plan.models import Model
from mergekit.plan.segments import ModuleSegments

_SHOWN = 3  # tensors named in the error


def refuse_packed(modules: Sequence[ModuleSegments], models: Sequence[Model]) -> None:
    """Refuse another order of layers where tensors outside of them hold a part for each layer.

    Raises:
        UnsupportedError: the layers are put in another order, or come from several models in turn.
    """
    for module in modules:
        if not module.sliced or _keeps_order(module):
            continue
        model = models[module.segments[0].inputs[0].model]
        own = model.layout.module(module.module.name)
        shapes = {model.names[key]: view.spec.shape for key, view in model.views.items() if key[1] is None}
        packed = packed_by_layer(shapes, model.layout, own) if own else []
        if packed:
            more = f" and {len(packed) - _SHOWN} more" if len(packed) > _SHOWN else ""
            listing = ", ".join(f"`{name}`" for name in packed[:_SHOWN])
            raise UnsupportedError(
                f"the layers of {model.ref} cannot be put in another order: {listing}{more} "
                "outside of the layers hold a part for each of them",
                hint="`models` instead of slices",
            )


def _keeps_order(module: ModuleSegments) -> bool:
    """Whether the output's layers are all layers of the same inputs, from first to last."""
    segments, stack = module.segments, module.module.stack
    if len({tuple(entry.model for entry in segment.inputs) for segment in segments}) > 1:
        return False
    inputs = segments[0].inputs
    origins = [
        [s.inputs[place].first + step for s in segments for step in range(s.layers)] for place in range(len(inputs))
    ]
    return all(own == list(range(stack.count if stack else 0)) for own in origins)
