"""Which matrices of a checkpoint are stored with their inputs first, as GPT-2 does."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergekit.checkpoint import TensorSpec

_NUMBER = re.compile(r"\.\d+\.")


def inputs_first(name: str, tensors: Mapping[str, TensorSpec]) -> bool | None:
    """Whether a matrix is stored as (in, out) instead of (out, in): biases have an entry for each output.

    Parameters:
        name: of a matrix, ``….weight``.
        tensors: what the tensors of its checkpoint are.

    Returns:
        None if it has a bias that tells nothing, as it is square, and so are all such matrices of its layers.

    Example:
        >>> from mergekit.checkpoint import DTYPES
        >>> shapes = {"h.0.c_attn.weight": (4, 12), "h.0.c_attn.bias": (12,), "h.0.c_proj.weight": (4, 4)}
        >>> shapes["h.0.c_proj.bias"] = (4,)
        >>> tensors = {name: TensorSpec(name, DTYPES["F32"], shape) for name, shape in shapes.items()}
        >>> inputs_first("h.0.c_proj.weight", tensors)
        True
    """
    if _bias(name, tensors) is None:
        return False
    stack = _NUMBER.split(name)[0]
    for other in (name, *tensors):
        if other == name or (other.endswith(".weight") and _NUMBER.split(other)[0] == stack):
            shape, bias = tensors[other].shape, _bias(other, tensors)
            if bias is not None and len(shape) == 2 and shape[0] != shape[1]:
                return bias == shape[1:]
    return None


def _bias(name: str, tensors: Mapping[str, TensorSpec]) -> tuple[int, ...] | None:
    """Shape of the bias that belongs to a weight."""
    spec = tensors.get(name.removesuffix("weight") + "bias")
    return spec.shape if spec is not None else None
