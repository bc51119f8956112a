"""Tensors outside of the layers that hold something for each of them, so that they fit one order of layers only."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergekit.layout.overlay import overlay
from mergekit.layout.parts import Layout, ModuleLayout, Shape
from mergekit.layout.words import words

_NUMBERED = re.compile(r"(.+?)\.(\d+)(\..+)?")
# A list of fewer entries has the length of the stack by chance too often.
_TELLING_HEIGHT = 4


def packed_by_layer(shapes: Mapping[str, Shape], layout: Layout, module: ModuleLayout) -> list[str]:
    """Return the tensors of a module that are outside of its layers and hold a part for each.

    They are tables called "per layer" with a multiple of the layer count along an axis (Gemma 3n's and 4's embeddings
    per layer), and lists that are numbered like the layers (Inkling 2's queries).

    Parameters:
        shapes: shape by tensor name.
        layout: the model's layout.
        module: the module whose layers are meant.

    Example:
        >>> from mergekit.layout import read_layout
        >>> shapes = {"emb_per_layer.weight": (9, 8), "layers.0.w": (2, 2), "layers.1.w": (2, 2), "norm.weight": (2,)}
        >>> layout = read_layout(shapes, {"num_hidden_layers": 2})
        >>> packed_by_layer(shapes, layout, layout.main)
        ['emb_per_layer.weight']
    """
    if module.stack is None:
        return []
    count = module.stack.count
    outside = [name for name in shapes if (part := layout.parts[name]).module == module.name and part.layer is None]
    tables = [name for name in outside if _speaks_of_layers(name) and _divides(count, shapes[name])]
    return tables + _lists(outside, count)


def _speaks_of_layers(name: str) -> bool:
    return {"per", "layer"} <= words(name) or not overlay().packed.isdisjoint(name.split("."))


def _divides(count: int, shape: Shape) -> bool:
    return any(size >= count and size % count == 0 for size in shape)


def _lists(names: list[str], count: int) -> list[str]:
    numbers: dict[str, dict[int, str]] = {}
    for name in names:
        if (match := _NUMBERED.fullmatch(name)) is not None:
            numbers.setdefault(match[1], {}).setdefault(int(match[2]), name)
    lists = [found for found in numbers.values() if found.keys() == set(range(count)) and count >= _TELLING_HEIGHT]
    return [name for found in lists for name in found.values()]
