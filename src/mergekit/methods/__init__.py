"""The mathematics of merging: one small module per method."""

from mergekit.methods.contract import Block, Method, Needs, Parameter, Reduction, Search, parameter
from mergekit.methods.registry import ABSENT, METHODS

__all__ = ["ABSENT", "METHODS", "Block", "Method", "Needs", "Parameter", "Reduction", "Search", "parameter"]
