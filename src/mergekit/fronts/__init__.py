"""Small tools, each of which makes a recipe or a plan and leaves the rest to the ordinary job."""

from mergekit.fronts.bakllama import HALF, bakllama_language, stacking
from mergekit.fronts.filling import Filling, fill_missing, plan_filling
from mergekit.fronts.legacy import legacy_recipe
from mergekit.fronts.shuffling import layers_of, shuffle_layers

__all__ = [
    "HALF",
    "Filling",
    "bakllama_language",
    "fill_missing",
    "layers_of",
    "legacy_recipe",
    "plan_filling",
    "shuffle_layers",
    "stacking",
]
