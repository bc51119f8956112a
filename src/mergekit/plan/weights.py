"""The tensors of a checkpoint as a merge sees them: as they are stored, or without quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergekit.checkpoint import Checkpoint
from mergekit.checkpoint.quantised import group_tensors, read_settings
from mergekit.plan.views import Dequantised, View, view_of
from mergekit.recipe import Recipe

_ACTIVATIONS = "about quantised activations, of which an unquantised model has none"


@dataclass(frozen=True, slots=True)
class Weights:
    """What is in a checkpoint.

    Parameters:
        views: by name.
        left_out: tensors that are no weights, by the reason.
        untied: whether an adapter gives it an output head, though its config says that it has none.
    """

    views: Mapping[str, View]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    untied: bool = False


def weights_of(checkpoint: Checkpoint, packed: bool) -> Weights:
    """See the tensors of a checkpoint as weights.

    Parameters:
        checkpoint: the checkpoint.
        packed: leave quantised tensors as they are stored.

    Raises:
        UnsupportedError: the weights are quantised in a way that is not read.
        CheckpointError: the parts of a quantised weight are not all there, or do not fit together.
    """
    if packed:
        return Weights({name: view_of(stored) for name, stored in checkpoint.tensors.items()})
    grouped = group_tensors(checkpoint.tensors, read_settings(checkpoint.config))
    views: dict[str, View] = {name: view_of(stored) for name, stored in grouped.plain.items()}
    views |= {name: Dequantised.of(weight) for name, weight in grouped.weights.items()}
    order = {name: place for place, name in enumerate(checkpoint.tensors)}
    ordered = dict(sorted(views.items(), key=lambda item: order[item[1].names[0]]))
    return Weights(ordered, {_ACTIVATIONS: grouped.activations} if grouped.activations else {})


def only_copies(recipe: Recipe) -> bool:
    """Whether a recipe takes tensors as they are: no method that computes, no factor, no other dtype."""
    parameters = [recipe.parameters]
    for parts in (recipe.modules, recipe.every_slice(), recipe.every_source()):
        parameters += [part.parameters for part in parts]
    adapted = any(ref.adapter for ref in recipe.references())
    scaled = any("scale" in each.settings for each in parameters)
    return recipe.method == "passthrough" and not (adapted or scaled or recipe.dtype or recipe.out_dtype)


def stay_packed(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether the output is quantised as its models are: nothing is computed, and one config.json fits all of it.

    Parameters:
        recipe: the recipe.
        checkpoints: its models, the donor first.
    """
    donor, *others = [read_settings(checkpoint.config) for checkpoint in checkpoints]
    stacked = bool(recipe.every_slice()) and donor.by_layer
    alike = not stacked and all(other.sections == donor.sections for other in others)
    return only_copies(recipe) and alike and (donor.method is not None or any(map(_in_float8, checkpoints)))


def _in_float8(checkpoint: Checkpoint) -> bool:
    return any(stored.spec.dtype.name.startswith("F8_") for stored in checkpoint.tensors.values())
