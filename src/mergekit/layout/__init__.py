"""What a model is: layers, modules, vocabulary, and edits of config.json, all read from the checkpoint itself."""

from mergekit.layout.edits import LayerOrigin, edit_config
from mergekit.layout.jsontext import rewrite
from mergekit.layout.matching import named_as
from mergekit.layout.names import align_names, derived_buffer
from mergekit.layout.packed import packed_by_layer
from mergekit.layout.parts import PREDICTION, Layout, ModuleLayout, Part, Role, Shape, Side, Stack
from mergekit.layout.reading import read_layout

__all__ = [
    "PREDICTION",
    "LayerOrigin",
    "Layout",
    "ModuleLayout",
    "Part",
    "Role",
    "Shape",
    "Side",
    "Stack",
    "align_names",
    "derived_buffer",
    "edit_config",
    "named_as",
    "packed_by_layer",
    "read_layout",
    "rewrite",
]
