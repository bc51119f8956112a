"""What a tensor is for, read off its name: queries, norms, experts."""

from __future__ import annotations

import re

from mergekit.layout import Part

PARTS = (
    "embedding",
    "positions",
    "q",
    "k",
    "v",
    "qkv",
    "o",
    "attention",
    "mixer",
    "mlp",
    "router",
    "experts",
    "shared",
    "norm",
    "projector",
    "head",
    "other",
)
"""All parts, in the order of tables.

`attention` is what is neither q, k, v nor o; `mixer` stands for state-space layers, convolutions and linear attention;
`shared` for shared experts.
"""

_RULES = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        ("norm", r"norm|(^|[._])ln([._\d]|$)"),
        ("router", r"router|(moe|mlp|ffn|feed_forward|mixer)\.gate(\.|$)|expert_gate"),
        ("shared", r"shared_(expert|mlp)"),
        ("experts", r"(^|\.)experts?[._]|moe\.(in|out)put_linear"),
        ("positions", r"wpe|(^|[._])pos(ition|_)|relative_attention_bias|inv_freq|rotary"),
        ("mixer", r"(^|\.)(mamba\w*|ssm|linear_attn|conv|temporal_block)(\.|$)"),
        ("mlp", r"(^|\.)(mlp|ffn|feed_forward|densereludense|intermediate)(\.|$)|(^|\.)fc_?\d|^output\.dense"),
        ("qkv", r"qkv|query_key_value|c_attn|w_pack|kv_[ab]_proj"),
        ("q", r"(^|\.)(w?q|q_(proj|lin|a_proj|b_proj)|query(_proj)?)(\.|$)"),
        ("k", r"(^|\.)(w?k|k_(proj|lin)|key(_proj)?)(\.|$)"),
        ("v", r"(^|\.)(w?v|v_(proj|lin)|value(_proj)?)(\.|$)"),
        ("o", r"(^|\.)(w?o|o_(proj|lin))(\.|$)|att\w*\.(\w+\.)*(out_(proj|lin)|c_proj|dense|proj)(\.|$)"),
        ("mlp", r"(^|\.)(up|down|gate|gate_up)_proj(\.|$)"),
        ("mixer", r"(^|\.)(mixer|\w*conv1d)(\.|$)"),
        ("attention", r"att(n|ention)"),
        ("head", r"(^|[._])(head|classifier|predictions|pooler|score)([._]|$)"),
        ("embedding", r"emb|wte|(^|\.)conv_?\d"),
    )
)
"""The first that is found in a tensor's name within its layer, in lower case, decides."""


def part_of(place: Part) -> str:
    """Which of `PARTS` a tensor belongs to.

    Parameters:
        place: its place in the layout.

    Example:
        >>> part_of(Part("default", 3, "self_attn.q_proj.weight", "layer", None, None))
        'q'
        >>> part_of(Part("default", None, "lm_head.bias", "post", "head_bias", 0))
        'head'
    """
    if place.role is not None:
        return place.role.removesuffix("_bias")
    if place.module == "multi_modal_projector":
        return "projector"
    name = place.suffix.lower()
    return next((part for part, pattern in _RULES if pattern.search(name)), "other")
