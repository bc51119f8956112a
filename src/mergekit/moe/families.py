"""The families of mixtures that can be written: how their tensors and settings are called, and what they can say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mergekit.moe.dense import Dense
from mergekit.moe.traits import (
    HEAD_DIM,
    HEAD_NORMS,
    LAYER_WINDOWS,
    MULTIPLIERS,
    O_BIAS,
    QKV_BIAS,
    ROPE,
    WIDE_NORMS,
    WINDOW,
    window_types,
)

_DEEPSEEK_CODE = "deepseek-ai/deepseek-moe-16b-base--"
_GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of a mixture that is to be made.

    Parameters:
        experts: how many experts there are.
        per_token: to how many of them a token goes.
        inner: entries inside each.
        shared: entries inside all shared experts together.
        layers: how many layers there are.
    """

    experts: int
    per_token: int
    inner: int
    shared: int
    layers: int


Settings = Callable[[Dense, Sizes], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Names:
    """What the tensors of an MLP of experts are called within a layer.

    Parameters:
        router: matrix with a row for each expert.
        matrix: of one expert, with ``{expert}`` and ``{matrix}``; None if all experts are stored as one tensor.
        matrices: what ``{matrix}`` is for `gate`, `up` and `down`.
        gate_up: of all experts as one tensor, gate above up.
        down: of all experts as one tensor.
    """

    router: str
    matrix: str | None
    matrices: Mapping[str, str]
    gate_up: str = "mlp.experts.gate_up_proj"
    down: str = "mlp.experts.down_proj"


@dataclass(frozen=True, slots=True)
class Shared:
    """How a family has shared experts.

    Parameters:
        matrix: name of their matrices, with ``{matrix}``; experts are put together into one.
        joined: whether gate and up are one matrix, called ``input_linear``.
        gate: name of the row that decides how much of the shared expert a token gets; None if it gets all of it.
        most: how many there can be; 0 for any number.
        always: whether a layer cannot be without; then one that adds nothing is written.
        whole: whether their width is given in widths of a routed expert.
    """

    matrix: str
    joined: bool = False
    gate: str | None = None
    most: int = 0
    always: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A family of mixtures.

    Parameters:
        title: its name.
        model_type: in config.json.
        architecture: class in config.json.
        spellings: how a recipe may call it, in lower-case letters and digits; beginnings count too.
        says: traits of dense models that it has as well.
        settings: its own entries of config.json.
        classic: names of tensors that all loaders read.
        fused: names in which transformers 5 holds them.
        kin: types of dense models that it continues.
        shared: its shared experts, or None.
        biased: parts of attention that have biases in every model, and those that have if one of them has.
        norms: the trait of the norms of queries and keys that it cannot do without, or None.
        native: whether transformers has it; if not, loading needs code from the hub.
        power_of_two: whether llama.cpp wants a number of experts that is a power of two.
    """

    title: str
    model_type: str
    architecture: str
    spellings: tuple[str, ...]
    says: frozenset[str]
    settings: Settings
    classic: Names
    fused: Names
    kin: frozenset[str]
    shared: Shared | None = None
    biased: tuple[str, str] = ("", "")
    norms: str | None = None
    native: bool = True
    power_of_two: bool = False

    def is_called(self, name: str) -> bool:
        """Whether a name in a recipe means this family."""
        spelled = _letters(name)
        known = (*self.spellings, _letters(self.title), _letters(self.architecture))
        return bool(spelled) and any(each.startswith(spelled) for each in known)


def _letters(name: str) -> str:
    """The letters and digits of a name, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _counted(key: str) -> Settings:
    return lambda _, sizes: {key: sizes.experts, "num_experts_per_tok": sizes.per_token}


def _mixtral(dense: Dense, sizes: Sizes) -> dict[str, Any]:
    window = dense.config.get("sliding_window") if _has(dense, WINDOW) else None
    return {
        **_counted("num_local_experts")(dense, sizes),
        "intermediate_size": sizes.inner,
        "sliding_window": window,
    }


def _qwen(dense: Dense, sizes: Sizes) -> dict[str, Any]:
    return {
        **_counted("num_experts")(dense, sizes),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "moe_intermediate_size": sizes.inner,
    }


def _qwen2(dense: Dense, sizes: Sizes) -> dict[str, Any]:
    windowed = _has(dense, WINDOW) or _has(dense, LAYER_WINDOWS)
    kinds = window_types({**dense.config, "num_hidden_layers": sizes.layers})
    if windowed and "use_sliding_window" not in dense.config:  # Mistral
        kinds = ["sliding_attention"] * sizes.layers
    own = {"layer_types": kinds, "use_sliding_window": True} if windowed else {"use_sliding_window": False}
    return {**_qwen(dense, sizes), "shared_expert_intermediate_size": sizes.shared, **own}


def _qwen3(dense: Dense, sizes: Sizes) -> dict[str, Any]:
    return {**_qwen(dense, sizes), "use_sliding_window": _has(dense, WINDOW), "head_dim": dense.head_dim}


def _olmoe(dense: Dense, sizes: Sizes) -> dict[str, Any]:
    own = {"intermediate_size": sizes.inner, "norm_topk_prob": True, "clip_qkv": None}
    return {**_counted("num_experts")(dense, sizes), **own}


def _granite(dense: Dense, sizes: Sizes) -> dict[str, Any]:
    scale = {} if _has(dense, MULTIPLIERS) else {"attention_multiplier": dense.head_dim**-0.5}
    return {**_counted("num_local_experts")(dense, sizes), "intermediate_size": sizes.inner, **scale}


def _granite_shared(dense: Dense, sizes: Sizes) -> dict[str, Any]:
    return {**_granite(dense, sizes), "shared_intermediate_size": sizes.shared}


def _deepseek(dense: Dense, sizes: Sizes) -> dict[str, Any]:
    return {
        "n_routed_experts": sizes.experts,
        "n_shared_experts": sizes.shared // sizes.inner or None,
        "num_experts_per_tok": sizes.per_token,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "moe_intermediate_size": sizes.inner,
        "attention_bias": _has(dense, QKV_BIAS) or _has(dense, O_BIAS),
        "auto_map": {
            "AutoConfig": f"{_DEEPSEEK_CODE}configuration_deepseek.DeepseekConfig",
            "AutoModel": f"{_DEEPSEEK_CODE}modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": f"{_DEEPSEEK_CODE}modeling_deepseek.DeepseekForCausalLM",
        },
    }


def _has(dense: Dense, kind: str) -> bool:
    return any(trait.kind == kind for trait in dense.traits())


def _names(router: str, matrix: str, matrices: Mapping[str, str] = _GATED) -> Names:
    return Names(router, matrix, matrices)


_FUSED = Names("mlp.gate.weight", None, _GATED)
_PER_EXPERT = _names("mlp.gate.weight", "mlp.experts.{expert}.{matrix}.weight")
_GRANITE = Names(
    "block_sparse_moe.router.layer.weight",
    None,
    _GATED,
    "block_sparse_moe.input_linear.weight",
    "block_sparse_moe.output_linear.weight",
)
_GRANITE_FUSED = Names(
    "block_sparse_moe.router.weight",
    None,
    _GATED,
    "block_sparse_moe.experts.gate_up_proj",
    "block_sparse_moe.experts.down_proj",
)
_ANY_HEAD = frozenset({HEAD_DIM, ROPE})
_BIASES = frozenset({QKV_BIAS, O_BIAS})

MIXTRAL = Family(
    title="Mixtral",
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    spellings=("mixtral", "mixtralmoe"),
    says=_ANY_HEAD | {WINDOW},
    settings=_mixtral,
    classic=_names("block_sparse_moe.gate.weight", "block_sparse_moe.experts.{expert}.{matrix}.weight", _MIXTRAL),
    fused=_FUSED,
    kin=frozenset({"llama", "mistral"}),
    power_of_two=True,
)
DEEPSEEK = Family(
    title="DeepSeek MoE",
    model_type="deepseek",
    architecture="DeepseekForCausalLM",
    spellings=("deepseek", "deepseekmoe"),
    says=_BIASES,
    settings=_deepseek,
    classic=_PER_EXPERT,
    fused=_PER_EXPERT,
    kin=frozenset({"llama", "mistral"}),
    shared=Shared("mlp.shared_experts.{matrix}.weight", whole=True),
    biased=("", "qkvo"),
    native=False,
)
QWEN2 = Family(
    title="Qwen2 MoE",
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    spellings=("qwen2", "qwen2moe", "qwenmoe"),
    says=_ANY_HEAD | {QKV_BIAS, WINDOW, LAYER_WINDOWS},
    settings=_qwen2,
    classic=_PER_EXPERT,
    fused=_FUSED,
    kin=frozenset({"qwen2"}),
    shared=Shared("mlp.shared_expert.{matrix}.weight", gate="mlp.shared_expert_gate.weight", most=1, always=True),
    biased=("qkv", ""),
    power_of_two=True,
)
QWEN3 = Family(
    title="Qwen3 MoE",
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    spellings=("qwen3", "qwen3moe"),
    says=_ANY_HEAD | _BIASES | {HEAD_NORMS, WINDOW},
    settings=_qwen3,
    classic=_PER_EXPERT,
    fused=_FUSED,
    kin=frozenset({"qwen3"}),
    biased=("", "qkvo"),
    norms=HEAD_NORMS,
)
GRANITE = Family(
    title="Granite MoE",
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    spellings=("granite", "granitemoe"),
    says=_ANY_HEAD | _BIASES | {MULTIPLIERS},
    settings=_granite,
    classic=_GRANITE,
    fused=_GRANITE_FUSED,
    kin=frozenset({"granite"}),
    biased=("", "qkvo"),
)
GRANITE_SHARED = Family(
    title="Granite MoE with shared experts",
    model_type="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    spellings=("granitemoeshared", "graniteshared"),
    says=GRANITE.says,
    settings=_granite_shared,
    classic=_GRANITE,
    fused=_GRANITE_FUSED,
    kin=GRANITE.kin,
    shared=Shared("shared_mlp.{matrix}.weight", joined=True),
    biased=GRANITE.biased,
)
OLMOE = Family(
    title="OLMoE",
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    spellings=("olmoe",),
    says=_ANY_HEAD | _BIASES | {WIDE_NORMS},
    settings=_olmoe,
    classic=_PER_EXPERT,
    fused=_FUSED,
    kin=frozenset(),
    biased=("", "qkvo"),
    norms=WIDE_NORMS,
)

FAMILIES = (MIXTRAL, DEEPSEEK, QWEN2, QWEN3, GRANITE, GRANITE_SHARED, OLMOE)
"""All families; of several that fit a model equally well the first is taken."""
