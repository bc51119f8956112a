"""Parameters that peft adapts without a module of their own (`target_parameters`): fused experts, as a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FUSED = ("gate_up_proj", "down_proj")
"""The fused tensors of a layer's experts, in the order in which models define them."""

_WRAPPER = ".base_layer"
_INPUTS_FIRST = frozenset({"gpt_oss", "llama4", "llama4_text"})


def target_of(module: str, parameters: Sequence[str]) -> str:
    """The tensor that a product of an adapter is for.

    peft wraps a module once for each of its parameters that is adapted, in the order of their definition; the wrappers
    inside of others have ``.base_layer`` in their names.

    Parameters:
        module: whose product it is, as the adapter has it.
        parameters: `target_parameters` of its config.

    Example:
        >>> targets = ["experts.gate_up_proj", "experts.down_proj"]
        >>> target_of("layers.0.experts.base_layer", targets), target_of("layers.0.experts", targets)
        ('layers.0.experts.gate_up_proj', 'layers.0.experts.down_proj')
        >>> target_of("layers.0.q_proj", targets)
        'layers.0.q_proj.weight'
    """
    stem = module
    while stem.endswith(_WRAPPER):
        stem = stem.removesuffix(_WRAPPER)
    own = [leaf for leaf in _leaves(parameters) if _is_meant(f"{stem}.{leaf}", parameters)]
    if not own:
        return f"{module}.weight"
    inside = (len(module) - len(stem)) // len(_WRAPPER)
    return f"{stem}.{own[max(0, len(own) - 1 - inside)]}"


def _leaves(parameters: Sequence[str]) -> list[str]:
    """Last names of parameters, those of fused experts in the order of their definition."""
    leaves = dict.fromkeys(name.rpartition(".")[2] for name in parameters)
    return [leaf for leaf in FUSED if leaf in leaves] + [leaf for leaf in leaves if leaf not in FUSED]


def _is_meant(name: str, parameters: Sequence[str]) -> bool:
    return any(name == parameter or name.endswith(f".{parameter}") for parameter in parameters)


def square_experts_inputs_first(config: Mapping[str, object]) -> bool:
    """Whether a model holds fused experts as (experts, in, out), of which square ones tell nothing.

    Parameters:
        config: its config.json.
    """
    return config.get("model_type") in _INPUTS_FIRST
