"""Routers out of hidden states of prompts, as the base model says them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.moe.keeping import keep, place_of, recall, stamp
from mergekit.moe.network import GateOptions, layers_of, require_torch, running
from mergekit.moe.prompts import padded
from mergekit.plan import Model

Rows = NDArray[Any]
Prompts = Sequence[Sequence[int]]
Sides = Sequence[tuple[Prompts, Prompts]]
"""For each expert the token ids of its positive and of its negative prompts."""

_BATCH = 64  # prompts that are run together
_LEAST_NORM = 1e-8
_RIDGE = 0.01  # of the mean variance of an entry


def hidden_vectors(model: Model, sides: Sides, mean: bool, options: GateOptions) -> Rows:
    """The direction of the hidden states of positive prompts, less those of negative ones, at the input of each layer.

    With h(P) the mean over prompts of the state at the last token (or of the mean over all tokens), computed in
    bfloat16 as the model is: ``g = h(positive) − h(negative)``, divided by its norm.

    Parameters:
        model: the model.
        sides: prompts of each expert; one without any gets zeros, and there must be one that has some.
        mean: over all tokens of a prompt instead of the last one.
        options: how it is run.

    Returns:
        float32, shape (layers, experts, width).

    Raises:
        UnsupportedError: transformers or torch is not installed.
        DeviceError: the device is not there.
    """
    batches = [prompts for side in sides for prompts in side if prompts]
    states = _states(model, batches, mean, options)
    nothing, each = np.zeros_like(states[0]), iter(states)
    torch = require_torch()
    rows = []
    for side in sides:
        positive, negative = (torch.from_numpy(next(each) if own else nothing).to(torch.bfloat16) for own in side)
        row = positive - negative
        rows.append(row / row.norm(p=2, dim=-1, keepdim=True).clamp(min=_LEAST_NORM))
    stacked: Rows = torch.stack(rows, dim=1).float().numpy()
    return stacked


def _states(model: Model, batches: Sequence[Prompts], mean: bool, options: GateOptions) -> list[Rows]:
    """Mean hidden states of every batch, float32, shape (layers, width); from the disk as far as they are there."""
    known = [stamp(model), "mean" if mean else "last", options.device, options.bits]
    files = [place_of(*known, batch) for batch in batches]
    found = [recall(file) if options.keep else None for file in files]
    if any(states is None for states in found):
        with running(model, options) as network:
            for place, prompts in enumerate(batches):
                if found[place] is None:
                    found[place] = fresh = _mean_states(network, prompts, mean)
                    if options.keep:
                        keep(files[place], fresh)
    return [states for states in found if states is not None]


def _mean_states(network: Any, prompts: Prompts, mean: bool) -> Rows:
    """Input of every layer, averaged over prompts; in the order and the dtype that the network computes in."""
    import torch

    total: Any = None
    for ids, mask in _batches(network, prompts):
        states = network(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[:-1]
        if mean:
            lengths = mask.sum(1)[:, None]
            own = [(state * mask[..., None]).sum(1) / lengths.to(state.dtype) for state in states]
        else:
            own = [state[:, -1] for state in states]
        summed = torch.stack([state.sum(0) for state in own])
        total = summed if total is None else total + summed
    found: Rows = (total / len(prompts)).float().cpu().numpy()
    return found


def _batches(network: Any, prompts: Prompts) -> Iterator[tuple[Any, Any]]:
    """Token ids and mask of some prompts at a time; what stands left of the shorter ones is never looked at."""
    import torch

    for first in range(0, len(prompts), _BATCH):
        ids, mask = (torch.tensor(rows, device=network.device) for rows in padded(prompts[first : first + _BATCH], 0))
        yield ids, mask


def fitted_vectors(model: Model, sides: Sides, options: GateOptions) -> Rows:
    """Rows that tell the experts' prompts apart, by ridge regression on what routers see.

    In every layer, with X the inputs of the base's MLP at all tokens of all prompts, and Y_te 1 if token t is of a
    positive prompt of expert e, −1 if of a negative one, else 0: ``W = (Y − mean Y)ᵀ X (XᵀX + λ)⁻¹``, scaled so that
    the router's scores of these tokens have a standard deviation of 1.

    Parameters:
        model: the model.
        sides: prompts of each expert.
        options: how it is run.

    Returns:
        float32, shape (layers, experts, width).

    Raises:
        UnsupportedError: transformers or torch is not installed.
        DeviceError: the device is not there.
    """
    file = place_of(stamp(model), "fitted", options.device, options.bits, sides)
    found = recall(file) if options.keep else None
    if found is None:
        with running(model, options) as network:
            found = _fitted(network, sides)
        if options.keep:
            keep(file, found)
    return found


@dataclass(slots=True)
class _Moments:
    """Sums over tokens, in one layer.

    Parameters:
        square: XᵀX.
        cross: YᵀX.
        total: of X.
        labels: of Y.
        tokens: how many.
    """

    square: Any
    cross: Any
    total: Any
    labels: Any
    tokens: int = 0

    @classmethod
    def none(cls, experts: int, width: int, device: Any) -> _Moments:
        """Those of no token."""
        import torch

        shapes = ((width, width), (experts, width), (width,), (experts,))
        square, cross, total, labels = (torch.zeros(shape, device=device) for shape in shapes)
        return cls(square, cross, total, labels)

    def add(self, states: Any, label: Any) -> None:
        """Take in tokens of one label."""
        self.square += states.T @ states
        self.total += states.sum(0)
        self.cross += label[:, None] * states.sum(0)
        self.labels += label * len(states)
        self.tokens += len(states)

    def rows(self) -> Rows:
        """W."""
        import torch

        square, mean = self.square.double() / self.tokens, self.labels.double() / self.tokens
        cross = self.cross.double() / self.tokens - mean[:, None] * (self.total.double() / self.tokens)
        ridge = _RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64, device=square.device)
        found = torch.linalg.solve(square + ridge, cross.T).T
        scores = found @ (self.total.double() / self.tokens)
        variance = (torch.einsum("eh,hk,ek->e", found, square, found)).mean() - scores.mean() ** 2
        rows: Rows = (found / variance.clamp(min=_LEAST_NORM).sqrt()).float().cpu().numpy()
        return rows


def _fitted(network: Any, sides: Sides) -> Rows:
    import torch

    layers = layers_of(network)
    seen: dict[int, Any] = {}

    def watch(layer: int) -> Any:
        return layers[layer].mlp.register_forward_pre_hook(lambda _, inputs: seen.__setitem__(layer, inputs[0]))

    hooks = [watch(layer) for layer in range(len(layers))]
    moments = [_Moments.none(len(sides), network.config.hidden_size, network.device) for _ in layers]
    for expert, side in enumerate(sides):
        for sign, prompts in zip((1.0, -1.0), side, strict=True):
            label = torch.zeros(len(sides), device=network.device)
            label[expert] = sign
            for ids, mask in _batches(network, prompts):
                network(input_ids=ids, attention_mask=mask)
                for layer, own in enumerate(moments):
                    own.add(seen[layer][mask > 0].float(), label)
    for hook in hooks:
        hook.remove()
    return np.stack([own.rows() for own in moments])
