"""Adapters: what a LoRA adapter changes about a model, read off its config and the header of its weights."""

from mergekit.adapters.changes import Change, ExpertProducts, NewNorms, NewRows, Offset, Product, Replacement
from mergekit.adapters.folder import CONFIG, WEIGHTS, Adapter, open_adapter
from mergekit.adapters.names import Base
from mergekit.adapters.orientation import inputs_first
from mergekit.adapters.parameters import FUSED, square_experts_inputs_first, target_of
from mergekit.adapters.targets import Adaptation, match_adapter

__all__ = [
    "CONFIG",
    "FUSED",
    "WEIGHTS",
    "Adaptation",
    "Adapter",
    "Base",
    "Change",
    "ExpertProducts",
    "NewNorms",
    "NewRows",
    "Offset",
    "Product",
    "Replacement",
    "inputs_first",
    "match_adapter",
    "open_adapter",
    "square_experts_inputs_first",
    "target_of",
]
