"""Recipes from the flags of mergekit's first command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from mergekit.errors import MergekitError
from mergekit.methods import METHODS
from mergekit.recipe import reference


def legacy_recipe(
    models: Sequence[str],
    *,
    method: str = "ties",
    base_model: str | None = None,
    density: Sequence[float] = (),
    weight: Sequence[float] = (),
    normalize: bool | None = None,
    int8_mask: bool = False,
    naive_count: bool = False,
    dtype: str | None = None,
) -> str:
    """The recipe that the flags stand for.

    Parameters:
        models: as users name them.
        method: of the merge.
        base_model: is added to the models, too, if it is not among them.
        density, weight: one for all models, or one for each; with SLERP one weight, which is `t`.
        normalize: None for true where the method has that parameter.
        int8_mask: is written down, and has no effect.
        naive_count: elect signs by counting models, not by adding up their entries.
        dtype: of the output, or None.

    Raises:
        MergekitError: there is no such method, or the numbers of models, densities and weights do not go together.

    Example:
        >>> print(legacy_recipe(["a", "b"], base_model="o", density=[0.5], weight=[0.3, 0.7]))
        merge_method: ties
        base_model: o
        models:
        - model: a
          parameters:
            density: 0.5
            weight: 0.3
        - model: b
          parameters:
            density: 0.5
            weight: 0.7
        - model: o
        parameters:
          normalize: true
        <BLANKLINE>
    """
    kind = METHODS.get(method)
    if kind is None:
        raise MergekitError(f"there is no merge method `{method}`", expected=", ".join(sorted(METHODS)))
    listed = [*models, *([base_model] if base_model and base_model not in models else [])]
    own: list[dict[str, float]] = [{} for _ in listed]
    shared: dict[str, Any] = {}
    if any(parameter.name == "normalize" for parameter in kind.parameters()) or normalize is not None:
        shared["normalize"] = normalize is not False
    shared |= {"int8_mask": True} if int8_mask else {}
    shared |= {"consensus_method": "count"} if naive_count else {}
    _spread("density", density, own, len(models))
    if method == "slerp":
        shared["t"] = _single(weight)
    else:
        _spread("weight", weight, own, len(models))
    unread = base_model if kind.needs.base != "ignored" else None  # the base has no parameters
    entries = [
        {"model": reference(model).written(), **({"parameters": values} if values and model != unread else {})}
        for model, values in zip(listed, own, strict=True)
    ]
    recipe = {
        "merge_method": method,
        **({"base_model": reference(base_model).written()} if base_model else {}),
        "models": entries,
        **({"parameters": shared} if shared else {}),
        **({"dtype": dtype} if dtype else {}),
    }
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def _spread(name: str, values: Sequence[float], models: Sequence[dict[str, float]], least: int) -> None:
    """Give each model its value: the only one, or the one at its place."""
    if len(values) > 1 and len(values) not in (least, len(models)):
        what = f"{least} models have {len(values)} values of `{name}`"
        raise MergekitError(what, expected="none, one for all, or one for each")
    each = list(values) * len(models) if len(values) == 1 else values
    for model, value in zip(models, each, strict=False):
        model[name] = value


def _single(weight: Sequence[float]) -> float:
    if len(weight) != 1:
        what = f"SLERP takes one weight, and there are {len(weight)}"
        raise MergekitError(what, expected="`--weight`, from 0 for the base to 1 for the other model")
    return weight[0]
