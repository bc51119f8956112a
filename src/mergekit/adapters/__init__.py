"""Adapters: what a LoRA adapter changes about a model, read off its config and the header of its weights."""

from mergekit.adapters.changes import Change, NewNorms, NewRows, Offset, Product, Replacement
from mergekit.adapters.folder import CONFIG, Adapter, open_adapter
from mergekit.adapters.names import Base
from mergekit.adapters.targets import Adaptation, match_adapter

__all__ = [
    "CONFIG",
    "Adaptation",
    "Adapter",
    "Base",
    "Change",
    "NewNorms",
    "NewRows",
    "Offset",
    "Product",
    "Replacement",
    "match_adapter",
    "open_adapter",
]
