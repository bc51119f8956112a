"""The methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mergekit.methods.contract import Method
from mergekit.methods.linear import Linear
from mergekit.methods.passthrough import Passthrough
from mergekit.methods.slerp import Slerp
from mergekit.methods.task_arithmetic import TaskArithmetic
from mergekit.methods.ties import Ties

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {method.name: method for method in (Linear, Slerp, TaskArithmetic, Ties, Passthrough)}
)

_ABSENT = """
    arcee_fusion breadcrumbs breadcrumbs_ties dare_linear dare_ties della della_linear karcher model_stock multislerp
    nearswap nuslerp ram ramplus_tl sce
"""

ABSENT: frozenset[str] = frozenset(_ABSENT.split())
"""Methods that recipes may name and that this version does not have yet."""
