"""A dense model taken apart: which of its tensors is what, in every layer, and what else there is to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergekit.layout import derived_buffer
from mergekit.moe.traits import (
    HEAD_NORMS,
    O_BIAS,
    OTHER,
    QKV_BIAS,
    WIDE_NORMS,
    Trait,
    config_traits,
    with_defaults,
)
from mergekit.moe.views import rows_of
from mergekit.plan import Model
from mergekit.plan.views import View

MATRICES = ("gate", "up", "down")
"""The matrices of a gated MLP: ``down(act(gate(x)) · up(x))``."""

_PARTS = (
    (re.compile(r"(input_layernorm|attention_norm|norm_1)"), "input_norm"),
    (re.compile(r"(post_attention_layernorm|ffn_norm|norm_2)"), "post_norm"),
    (re.compile(r"(?:\w*attn|attention)\.(?:w)?(q|k|v|o)(?:_proj)?"), None),
    (re.compile(r"(?:\w*attn|attention)\.(q_norm|k_norm)"), None),
    (re.compile(r"(?:\w*attn|attention)\.(qkv)_proj"), None),
    (re.compile(r"(?:mlp|feed_forward|ffn)\.(gate_up|gate|up|down)_proj"), None),
    (re.compile(r"(?:mlp|feed_forward|ffn)\.(w1)"), "gate"),
    (re.compile(r"(?:mlp|feed_forward|ffn)\.(w2)"), "down"),
    (re.compile(r"(?:mlp|feed_forward|ffn)\.(w3)"), "up"),
)
_NEEDED = ("input_norm", "q", "k", "v", "o", "post_norm")
_EXPERTS = re.compile(r"(^|\.)experts?[._]|moe\.(in|out)put_linear")


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense model.

    Parameters:
        model: as it was opened.
        config: its config.json with what loaders assume where that is silent.
        layers: in each layer, tensors by what they are: ``q``, ``q.bias``, ``gate``, ``input_norm``.
        others: in each layer, names of tensors that are nothing of this.
    """

    model: Model
    config: Mapping[str, Any]
    layers: tuple[Mapping[str, View], ...]
    others: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, model: Model) -> Dense:
        """Take a model apart."""
        stack = model.layout.main.stack
        count = stack.count if stack else 0
        config = with_defaults(model.checkpoint.config)
        found: list[dict[str, View]] = [{} for _ in range(count)]
        others: list[list[str]] = [[] for _ in range(count)]
        for (module, layer, suffix), view in model.views.items():
            if module != model.layout.main.name or layer is None or derived_buffer(suffix, view.spec.shape):
                continue
            part = part_of(suffix)
            if part is None:
                others[layer].append(suffix)
            else:
                found[layer].update(_divided(part, view, config))
        return cls(model, config, tuple(found), tuple(map(tuple, others)))

    @property
    def has_experts(self) -> bool:
        """Whether it is a mixture already."""
        return any(_EXPERTS.search(name) for names in self.others for name in names)

    @property
    def width(self) -> int:
        """Entries of the residual stream."""
        embedding = self.model.embedding
        return embedding.spec.shape[1] if embedding is not None else 0

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        embedding = self.model.embedding
        return embedding.spec.shape[0] if embedding is not None else 0

    @property
    def inner(self) -> int:
        """Entries inside its MLPs; 0 if they are not alike or not gated."""
        sizes = {layer["gate"].spec.shape[0] if "gate" in layer else 0 for layer in self.layers}
        return sizes.pop() if len(sizes) == 1 else 0

    @property
    def activation(self) -> str:
        """The function in its MLPs."""
        return str(self.config.get("hidden_act") or self.config.get("hidden_activation") or "silu")

    @property
    def head_dim(self) -> int:
        """Entries of a head of attention."""
        told = self.config.get("head_dim")
        return told if isinstance(told, int) else self.width // int(self.config.get("num_attention_heads") or 1)

    def mlp_flaws(self) -> Iterator[str]:
        """Why its MLPs cannot be experts, each in half a sentence."""
        if self.has_experts:
            yield "it is a mixture of experts already"
            return
        missing = [part for part in MATRICES if any(part not in layer for layer in self.layers)]
        if missing or not self.layers:
            yield f"its layers have no MLP with {', '.join(missing or MATRICES)} matrices"
        elif not self.inner:
            yield "its MLPs are of several widths"
        if any(f"{part}.bias" in layer for part in MATRICES for layer in self.layers):
            yield "its MLPs have biases"

    def traits(self) -> tuple[Trait, ...]:
        """What a mixture must be able to say to compute as this model does."""
        found = dict.fromkeys([*self._missing(), *self._biases(), *self._norms(), *self._unknown()])
        return (*found, *config_traits(self.config))

    def _missing(self) -> Iterator[Trait]:
        for part in _NEEDED:
            if any(part not in layer for layer in self.layers):
                yield Trait(OTHER, f"the base's layers have no `{part}`")

    def _biases(self) -> Iterator[Trait]:
        for layer in self.layers:
            if any(f"{part}.bias" in layer for part in "qkv"):
                yield Trait(QKV_BIAS, "the base's queries, keys and values have biases")
            if "o.bias" in layer:
                yield Trait(O_BIAS, "the output of the base's attention has a bias")
            if any(f"{part}_norm.bias" in layer for part in ("input", "post", "q", "k")):
                yield Trait(OTHER, "the base's norms have biases")

    def _norms(self) -> Iterator[Trait]:
        for layer in self.layers:
            if "q_norm" in layer and "q" in layer:
                wide = layer["q_norm"].spec.count == layer["q"].spec.shape[0] != self.head_dim
                kind, where = (WIDE_NORMS, "all heads at once") if wide else (HEAD_NORMS, "each head")
                yield Trait(kind, f"the base's queries and keys are normalised, {where}")

    def _unknown(self) -> Iterator[Trait]:
        for name in dict.fromkeys(name for names in self.others for name in names):
            yield Trait(OTHER, f"the base's layers have `{name}`")
        layout = self.model.layout
        for (module, layer, suffix), name in self.model.names.items():
            part = layout.parts.get(name)
            known = part is not None and part.role in ("embedding", "head")
            if layer is None and not (known or final_norm(suffix) or derived_buffer(suffix)):
                yield Trait(OTHER, f"the base has `{suffix}`")
            elif module != layout.main.name and not known:
                yield Trait(OTHER, f"the base has a part beside the language model, `{module}`")
        if layout.main.stack is not None and layout.main.stack.config_path:
            yield Trait(OTHER, "the base's config describes a model inside another")


def final_norm(suffix: str) -> bool:
    """Whether a tensor outside the layers is the norm behind the last one."""
    return re.fullmatch(r"(\w+\.)*(norm|final_layernorm|ln_f)\.weight", suffix) is not None


def part_of(suffix: str) -> str | None:
    """What a tensor of a layer is, by its name; None if that is not known.

    Example:
        >>> part_of("self_attn.q_proj.bias"), part_of("mlp.gate_up_proj.weight"), part_of("mlp.c_fc.weight")
        ('q.bias', 'gate_up', None)
    """
    stem, _, leaf = suffix.rpartition(".")
    for pattern, name in _PARTS:
        match = pattern.fullmatch(stem)
        if match and leaf in ("weight", "bias"):
            return (name or match[1]) + (".bias" if leaf == "bias" else "")
    return None


def _divided(part: str, view: View, config: Mapping[str, Any]) -> dict[str, View]:
    """A tensor by what it is; one that is several, stacked, as these."""
    name, _, bias = part.partition(".")
    rows = view.spec.shape[0]
    if name == "gate_up":
        names, sizes = ["gate", "up"], [rows // 2, rows // 2]
    elif name == "qkv":
        heads = int(config.get("num_attention_heads") or 1)
        pairs = int(config.get("num_key_value_heads") or heads)
        own = rows // (heads + 2 * pairs)
        names, sizes = ["q", "k", "v"], [own * heads, own * pairs, own * pairs]
    else:
        return {part: view}
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return {
        f"{each}.{bias}".rstrip("."): rows_of(view, start, size)
        for each, start, size in zip(names, starts, sizes, strict=True)
    }
