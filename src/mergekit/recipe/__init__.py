"""Recipes: what to merge and how, written in YAML; read, checked, and typed."""

from mergekit.recipe.forms import Vocabulary
from mergekit.recipe.model import (
    Module,
    OtherToken,
    Parameters,
    Recipe,
    SameToken,
    Slice,
    Source,
    TokenEntry,
    TokenizerSetting,
    TokenizerSource,
    TokenSource,
    ZeroRow,
)
from mergekit.recipe.reader import decoded, read_document, read_recipe
from mergekit.recipe.references import Address, ModelRef, reference
from mergekit.recipe.schema import recipe_schema
from mergekit.recipe.settings import (
    Case,
    Constant,
    Filtered,
    Gradient,
    Kind,
    Scalar,
    Setting,
    coerce,
    evaluate,
    filters,
    leaves,
    matches,
)
from mergekit.recipe.spelling import nearest

__all__ = [
    "Address",
    "Case",
    "Constant",
    "Filtered",
    "Gradient",
    "Kind",
    "ModelRef",
    "Module",
    "OtherToken",
    "Parameters",
    "Recipe",
    "SameToken",
    "Scalar",
    "Setting",
    "Slice",
    "Source",
    "TokenEntry",
    "TokenSource",
    "TokenizerSetting",
    "TokenizerSource",
    "Vocabulary",
    "ZeroRow",
    "coerce",
    "decoded",
    "evaluate",
    "filters",
    "leaves",
    "matches",
    "nearest",
    "read_document",
    "read_recipe",
    "recipe_schema",
    "reference",
]
