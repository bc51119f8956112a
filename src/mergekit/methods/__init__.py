"""The mathematics of merging: one small module per method."""

from mergekit.errors import MethodError
from mergekit.methods.contract import (
    Block,
    Method,
    Needs,
    Parameter,
    PerModel,
    Reduction,
    Search,
    Target,
    parameter,
    row_grain,
)
from mergekit.methods.function import Bounds, merge_method
from mergekit.methods.registry import METHODS

__all__ = [
    "METHODS",
    "Block",
    "Bounds",
    "Method",
    "MethodError",
    "Needs",
    "Parameter",
    "PerModel",
    "Reduction",
    "Search",
    "Target",
    "merge_method",
    "parameter",
    "row_grain",
]
