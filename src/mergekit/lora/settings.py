"""adapter_config.json of an adapter that is made here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


@dataclass(frozen=True, slots=True)
class Contents:
    """What an adapter holds.

    Parameters:
        ranks: of products, by module.
        parameters: those of them that stand for tensors without a module of their own.
        whole: modules that are held whole.
        rows: token ids of which rows are held, by module.
        rank: the one that counts where nothing else is said; None for the most frequent.
        transposed: whether some matrices are stored with their inputs first.
        offsets: whether every product comes with an offset of the bias.
        biases: whether biases of modules with products are held whole.
    """

    ranks: Mapping[str, int]
    parameters: frozenset[str] = frozenset()
    whole: Sequence[str] = ()
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    rank: int | None = None
    transposed: bool = False
    offsets: bool = False
    biases: bool = False


def adapter_config(contents: Contents, base: str, config: Mapping[str, object]) -> dict[str, object]:
    """The settings that make peft see what is there: scales are in the factors, so that alpha is the rank everywhere.

    Modules are named in full, so that no other module is adapted.

    Parameters:
        contents: what the adapter holds.
        base: path or name of the base.
        config: config.json of the base.

    Example:
        >>> made = adapter_config(Contents({"h.0.k": 4, "h.1.k": 4, "h.1.q": 8}), "org/base", {})
        >>> made["r"], made["rank_pattern"], made["target_modules"]
        (4, {'h.1.q': 8}, ['h.0.k', 'h.1.k', 'h.1.q'])
    """
    rank = contents.rank or Counter(contents.ranks.values()).most_common(1)[0][0]
    pattern = {module: own for module, own in contents.ranks.items() if own != rank}
    parameters = [module for module in contents.ranks if module in contents.parameters]
    rows = {name: list(ids) for name, ids in contents.rows.items()}
    return {
        "peft_type": "LORA",
        "task_type": task_type(config),
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "target_modules": [module for module in contents.ranks if module not in contents.parameters],
        **({"target_parameters": parameters} if parameters else {}),
        "modules_to_save": list(contents.whole) or None,
        **({"trainable_token_indices": rows} if rows else {}),
        "bias": "lora_only" if contents.biases else "none",
        "lora_bias": contents.offsets,
        "fan_in_fan_out": contents.transposed,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def task_type(config: Mapping[str, object]) -> str | None:
    """What peft calls the task of a model, read off its architecture; None if there is no name for it."""
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if name.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM" if config.get("is_encoder_decoder") else "CAUSAL_LM"
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)
