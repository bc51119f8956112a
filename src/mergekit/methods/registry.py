"""The methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mergekit.methods.arcee_fusion import ArceeFusion
from mergekit.methods.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from mergekit.methods.contract import Method
from mergekit.methods.dare import DareLinear, DareTies
from mergekit.methods.della import Della, DellaLinear
from mergekit.methods.karcher import Karcher
from mergekit.methods.linear import Linear
from mergekit.methods.model_stock import ModelStock
from mergekit.methods.multislerp import MultiSlerp
from mergekit.methods.nearswap import NearSwap
from mergekit.methods.nuslerp import NuSlerp
from mergekit.methods.passthrough import Passthrough
from mergekit.methods.ram import Ram
from mergekit.methods.ramplus_tl import RamPlusTL
from mergekit.methods.sce import Sce
from mergekit.methods.slerp import Slerp
from mergekit.methods.task_arithmetic import TaskArithmetic
from mergekit.methods.ties import Ties

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {
        method.name: method
        for method in (
            Linear,
            Slerp,
            NuSlerp,
            MultiSlerp,
            Karcher,
            ModelStock,
            TaskArithmetic,
            Ties,
            DareLinear,
            DareTies,
            Breadcrumbs,
            BreadcrumbsTies,
            Della,
            DellaLinear,
            Sce,
            Ram,
            RamPlusTL,
            NearSwap,
            ArceeFusion,
            Passthrough,
        )
    }
)
