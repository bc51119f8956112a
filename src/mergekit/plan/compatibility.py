"""Why models cannot be merged, said in the terms of their configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from mergekit.errors import MergekitError
from mergekit.plan.models import Model

_TELLING = (
    "model_type",
    "hidden_size",
    "n_embd",
    "d_model",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts",
    "vocab_size",
    "max_position_embeddings",
)
_SHOWN = 3  # tensors named in one error

_E = TypeVar("_E", bound=MergekitError)


def _entries(config: Mapping[str, object]) -> Mapping[str, object]:
    """The config with the language model's part on top."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def differences(models: Sequence[Model]) -> list[str]:
    """What the configs say differently, most telling first: ``hidden_size 4096 and 3584``."""
    configs = [_entries(model.checkpoint.config) for model in models]
    found = []
    for key in _TELLING:
        values = list(dict.fromkeys(str(config[key]) for config in configs if config.get(key) is not None))
        if len(values) > 1:
            found.append(f"{key} {' and '.join(values)}")
    return found


def incompatible(models: Sequence[Model], reports: Sequence[str], kind: type[_E], hint: str | None = None) -> _E:
    """One error that starts with what differs.

    Parameters:
        models: all models of the merge.
        reports: sentences about tensors, the most important first.
        kind: class of the error.
        hint: what to try, if nothing better is known.
    """
    reasons = differences(models)
    shown = "; ".join(reports[:_SHOWN]) + (f"; and {len(reports) - _SHOWN} more" if len(reports) > _SHOWN else "")
    what = f"models are not compatible: {', '.join(reasons)}" if reasons else "models are not compatible"
    only_vocabulary = bool(reasons) and all(reason.startswith("vocab_size") for reason in reasons)
    flag = "`--unsafe-truncate-embeddings`, or `unsafe_truncate_embeddings=True` in Python,"
    hint = f"{flag} which keeps the rows that all have" if only_vocabulary else hint
    return kind(f"{what} ({shown})", place=", ".join(str(model.ref) for model in models), hint=hint)
