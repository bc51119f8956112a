"""Recipes that stack layers which were drawn at random from several models."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

import yaml

from mergekit.checkpoint.hub import Hub, open_model
from mergekit.errors import IncompatibleModelsError, MergekitError
from mergekit.layout import read_layout
from mergekit.recipe import reference

_ROUNDING = 1e-9  # a third of 6 layers are 2, whatever floating point says


def layers_of(model: str, hub: Hub | None = None) -> int:
    """How many layers a model has.

    Parameters:
        model: as users name it; an adapter changes nothing.
        hub: how it is taken from the hub.

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
        IncompatibleModelsError: it has no layers.
    """
    checkpoint = open_model(reference(model).model, hub)
    shapes = {name: stored.spec.shape for name, stored in checkpoint.tensors.items()}
    stack = read_layout(shapes, checkpoint.config).main.stack
    if stack is None:
        raise IncompatibleModelsError("the model has no layers that could be shuffled", place=model)
    return stack.count


def shuffle_layers(
    models: Sequence[str],
    heights: Sequence[int],
    weights: Sequence[float] = (),
    *,
    full_random: bool = False,
    seed: int = 0,
    dtype: str | None = None,
) -> str:
    """The recipe of a model whose layers come from models drawn at random, one slice for each layer.

    Every layer of the first model is replaced by the layer of the same number of a drawn model. With `full_random`,
    each model gives as many layers as its weight times its number of layers, drawn from all of them, in random order.

    Parameters:
        models: as users name them, at least one.
        heights: their numbers of layers.
        weights: the chance of each model, or with `full_random` the layers it gives as a share of those that it has;
            equal shares of 1 in all without them.
        full_random: draw layers, too.
        seed: the same seed gives the same recipe.
        dtype: of the output, or None.

    Raises:
        MergekitError: no layer is left, or there are not as many weights as models, or one is negative.
        IncompatibleModelsError: a model that may be drawn has fewer layers than the first one, whose places are kept.

    Example:
        >>> print(shuffle_layers(["a", "b"], [2, 2], seed=1))
        merge_method: passthrough
        slices:
        - sources:
          - model: a
            layer_range: [0, 1]
        - sources:
          - model: b
            layer_range: [1, 2]
        <BLANKLINE>
    """
    shares = list(weights) or [1 / len(models)] * len(models)
    if len(shares) != len(models):
        raise MergekitError(f"{len(models)} models have {len(shares)} weights", expected="a weight for each, or none")
    if min(shares) < 0 or not 0 < sum(shares) < inf:
        listed = ", ".join(f"{share:g}" for share in shares)
        raise MergekitError(f"the weights are {listed}", expected="finite numbers, 0 or more, and one above 0")
    random = Random(seed)
    if full_random:
        layers = [
            (model, random.randrange(height))
            for model, height, share in zip(models, heights, shares, strict=True)
            for _ in range(int(height * share + _ROUNDING))
        ]
        random.shuffle(layers)
    else:
        _refuse_shallow(models, heights, shares)
        layers = list(zip(random.choices(models, shares, k=heights[0]), range(heights[0]), strict=True))
    if not layers:
        raise MergekitError("no layer is left: the weights are too small", hint="`--weight 0.5` for half of the layers")
    return _stacked(layers, dtype)


def _refuse_shallow(models: Sequence[str], heights: Sequence[int], shares: Sequence[float]) -> None:
    """Whatever is drawn, each model must have a layer for every place: whether it works is no matter of luck."""
    for model, height, share in zip(models, heights, shares, strict=True):
        if share and height < heights[0]:
            raise IncompatibleModelsError(
                f"{model} has {height} layers, and {models[0]} has {heights[0]}, each of which may come from any model",
                expected="models with as many layers as the first one, or more",
                hint="`--full-random`, or the model with the fewest layers first",
            )


def _stacked(layers: Sequence[tuple[str, int]], dtype: str | None) -> str:
    head = {"merge_method": "passthrough", **({"dtype": dtype} if dtype else {})}
    names = {model: _on_one_line(reference(model).written()) for model, _ in layers}
    slices = (
        f"- sources:\n  - model: {names[model]}\n    layer_range: [{layer}, {layer + 1}]\n" for model, layer in layers
    )
    return "".join([yaml.safe_dump(head, sort_keys=False, allow_unicode=True), "slices:\n", *slices])


def _on_one_line(value: object) -> str:
    """YAML of a value, however long it is."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=1 << 20).strip()[1:-1]
