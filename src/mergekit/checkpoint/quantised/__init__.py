"""Quantised weights: which stored tensors make up one weight, and what their bytes stand for.

A weight is stored as codes of 1 to 8 bits, as factors that rows, groups or blocks of entries share, and sometimes as
zero points: ``entry = (table[code] - zero) · scale``. What differs between formats is names, tables and strides; they
are told apart by :mod:`.formats`, a table, from what is stored and from the settings in config.json.
"""

from mergekit.checkpoint.quantised.codes import Codes, Grid, Quantised
from mergekit.checkpoint.quantised.factors import Factors, NestedFactors, PackedZeros, PlainFactors
from mergekit.checkpoint.quantised.formats import Grouped, group_tensors
from mergekit.checkpoint.quantised.numbers import widened
from mergekit.checkpoint.quantised.settings import KEYS, SIDE_FILES, Settings, read_settings

__all__ = [
    "KEYS",
    "SIDE_FILES",
    "Codes",
    "Factors",
    "Grid",
    "Grouped",
    "NestedFactors",
    "PackedZeros",
    "PlainFactors",
    "Quantised",
    "Settings",
    "group_tensors",
    "read_settings",
    "widened",
]
