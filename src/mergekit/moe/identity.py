"""Proof that a mixture computes as dense models do: with every expert the same, its logits are those of that model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mergekit.checkpoint import dtype_titled
from mergekit.moe.language import Expert
from mergekit.moe.network import folder_of, layers_of, quiet_transformers, require_torch
from mergekit.moe.planning import MoePlan
from mergekit.plan import Model

TOLERANCE = 1e-4  # of the greatest logit
_PROMPTS, _LENGTH = 2, 24  # random tokens that both models are shown
_SHARED = re.compile(r"\.shared_experts?\.down_proj|\.shared_mlp\.output_linear")
_ONE_OF = re.compile(r"(?P<stem>.*\.experts\.)(?P<number>\d+)(?P<rest>\..*)")


@dataclass(frozen=True, slots=True)
class Identity:
    """What came of comparing a mixture with dense models.

    Parameters:
        compared: what was compared with what, in a sentence each.
        left_out: what was not, and why.
        difference: greatest difference of a logit, as a share of the greatest logit; None if nothing was compared.
    """

    compared: tuple[str, ...]
    left_out: tuple[str, ...]
    difference: float | None

    @property
    def holds(self) -> bool:
        """Whether all that was compared is equal, but for rounding."""
        return self.difference is None or self.difference <= TOLERANCE


def check_identity(out: Path, made: MoePlan) -> Identity:
    """Compare a mixture that was written with the dense models that it is made of, in float32.

    The dense model is the base, by transformers, with the MLPs of one expert. If all experts are that model, the
    mixture is compared as it is; otherwise its experts are made equal in memory, one expert after the other. Shared
    experts add nothing while this is done.

    Parameters:
        out: the mixture.
        made: its plan.

    Raises:
        UnsupportedError: transformers or torch is not installed.
    """
    if not made.family.native:
        return Identity((), (f"{made.family.title} is loaded by code from the hub, which is not run here",), None)
    torch = require_torch()
    recipe = made.recipe
    models = {model.ref: model for model in made.plan.models}
    compared, left_out, worst = [], [], 0.0
    with ExitStack() as stack, torch.inference_mode():
        network = _load(out)
        ids = _tokens(made.plan.models[0])
        if recipe.shared:
            left_out.append("shared experts, which no dense model has: they add nothing while this is compared")
            _silence(network)
        kept = {name: entries.clone() for name, entries in network.named_parameters() if _of_experts(name, entries)}
        for place, representative in _representatives(recipe.experts):
            if representative.noise_scale:
                left_out.append(f"`{representative.path}`, which has noise")
                continue
            alike = all(each == representative or _same(each, representative) for each in recipe.experts)
            if not alike:
                _make_equal(network, kept, place, len(recipe.experts))
            dense = _dense(stack, made, models[recipe.base_model], models[representative.model], representative)
            worst = max(worst, _difference(network, dense, ids))
            what = "as it was written" if alike else f"with every expert made `{representative.path}`"
            compared.append(f"the mixture {what}, with {recipe.base_model} with the MLPs of {representative.model}")
    return Identity(tuple(compared), tuple(left_out), worst if compared else None)


def _same(one: Expert, other: Expert) -> bool:
    return (one.model, one.noise_scale, one.residual_scale) == (other.model, other.noise_scale, other.residual_scale)


def _representatives(experts: Sequence[Expert]) -> Iterator[tuple[int, Expert]]:
    """The first of all experts that are equal."""
    for place, expert in enumerate(experts):
        if not any(_same(expert, earlier) for earlier in experts[:place]):
            yield place, expert


def _load(folder: Path) -> Any:
    import torch

    transformers: Any = import_module("transformers")
    with quiet_transformers():
        network = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    return network.eval()


def _tokens(model: Model) -> Any:
    """The same random tokens every time."""
    import torch

    assert model.embedding is not None
    draw = torch.Generator().manual_seed(0)
    return torch.randint(model.embedding.spec.shape[0], (_PROMPTS, _LENGTH), generator=draw)


def _of_experts(name: str, entries: Any) -> bool:
    return _ONE_OF.fullmatch(name) is not None or entries.ndim == 3


def _make_equal(network: Any, kept: Any, place: int, count: int) -> None:
    """Put one expert in the place of each, whether experts are stored one by one or together."""
    parameters = dict(network.named_parameters())
    for name in kept:
        match = _ONE_OF.fullmatch(name)
        if match:
            parameters[name].copy_(kept[f"{match['stem']}{place}{match['rest']}"])
        else:
            parameters[name].copy_(kept[name][place].expand(count, -1, -1))


def _silence(network: Any) -> None:
    """Let shared experts add nothing."""
    for name, entries in network.named_parameters():
        if _SHARED.search(name):
            entries.zero_()


def _dense(stack: ExitStack, made: MoePlan, base: Model, model: Model, expert: Expert) -> Any:
    """The base with the MLPs of an expert, rounded as the output is."""
    network = _load(stack.enter_context(folder_of(base, made.hub)))
    donor = network if model is base else _load(stack.enter_context(folder_of(model, made.hub)))
    layers, donors = layers_of(network), layers_of(donor)
    for layer, own in zip(layers, donors, strict=True):
        layer.mlp = own.mlp
    if made.dtype is not None:
        _round(network, made.dtype)
    if expert.residual_scale is not None:
        for layer in layers:
            layer.mlp.down_proj.weight.mul_(expert.residual_scale)
            if made.dtype is not None:
                _round(layer.mlp.down_proj, made.dtype)
    return network


def _round(module: Any, title: str) -> None:
    import torch

    dtype = getattr(torch, dtype_titled(title).title)
    for entries in module.parameters():
        entries.copy_(entries.to(dtype))


def _difference(network: Any, dense: Any, ids: Any) -> float:
    """Greatest difference of a logit, as a share of the greatest logit."""
    expected, found = dense(ids).logits, network(ids).logits
    return float((found - expected).abs().max() / expected.abs().max())
