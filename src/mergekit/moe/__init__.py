"""Mixtures of experts out of dense models: attention, norms and embeddings of one, MLPs of several.

A recipe of its own language names a base and experts; the result is a plan of tensor tasks like that of any merge:
bytes that are copied, expert matrices with noise or a factor, and router rows that are held in memory.
"""

from mergekit.moe.building import MoeOptions, build_moe
from mergekit.moe.families import FAMILIES, Family
from mergekit.moe.identity import Identity, check_identity
from mergekit.moe.language import MoeRecipe, read_moe
from mergekit.moe.network import GateOptions
from mergekit.moe.planning import MoePlan, plan_moe, try_to_plan_moe

__all__ = [
    "FAMILIES",
    "Family",
    "GateOptions",
    "Identity",
    "MoeOptions",
    "MoePlan",
    "MoeRecipe",
    "build_moe",
    "check_identity",
    "plan_moe",
    "read_moe",
    "try_to_plan_moe",
]
