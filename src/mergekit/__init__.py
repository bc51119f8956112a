"""Merge pretrained language models in weight space, out of core, on ordinary machines.

Everything that Python programs call is named here, and loaded when it is first used.

Example:
    >>> import mergekit, numpy
    >>> base, de, es = numpy.float32([[1, 1, 1], [1, 3, 1], [1, 2, 0]])
    >>> mergekit.merge_tensors("task_arithmetic", [de, es], base=base, parameters={"weight": 0.5})
    array([1. , 2.5, 0.5], dtype=float32)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit.api.options import MergeOptions
    from mergekit.api.recipes import iter_merged, merge_models, plan_merge
    from mergekit.api.tensors import merge_state_dicts, merge_tensors
    from mergekit.config import MergeConfiguration
    from mergekit.errors import MergekitError
    from mergekit.plan import Plan

__version__ = "0.2.0"

__all__ = [
    "MergeConfiguration",
    "MergeOptions",
    "MergekitError",
    "Plan",
    "__version__",
    "iter_merged",
    "merge_models",
    "merge_state_dicts",
    "merge_tensors",
    "plan_merge",
]

_HOMES = {
    "MergeConfiguration": "mergekit.config",
    "MergeOptions": "mergekit.api.options",
    "MergekitError": "mergekit.errors",
    "Plan": "mergekit.plan",
    "iter_merged": "mergekit.api.recipes",
    "merge_models": "mergekit.api.recipes",
    "merge_state_dicts": "mergekit.api.tensors",
    "merge_tensors": "mergekit.api.tensors",
    "plan_merge": "mergekit.api.recipes",
}


def __getattr__(name: str) -> object:
    """Load what is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    """Everything there is, loaded or not."""
    return sorted({*globals(), *__all__})
