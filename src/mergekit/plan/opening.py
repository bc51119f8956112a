"""The folders and repositories that a recipe names, opened: headers and configs, no weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from mergekit.adapters import Adaptation, Adapter, Base, match_adapter, open_adapter
from mergekit.checkpoint import Checkpoint, TensorSpec
from mergekit.checkpoint.hub import Hub, is_local, local_folder, open_model
from mergekit.errors import CheckpointError, Findings, Place, UnsupportedError
from mergekit.plan.views import InPlace, View, adapted
from mergekit.plan.weights import Weights, weights_of
from mergekit.recipe import Address, ModelRef, Recipe

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Opened:
    """What a reference names.

    Parameters:
        ref: as the recipe names it.
        checkpoint: the model.
        adapter: what is applied to it, or None.
        place: where the recipe names it first.
    """

    ref: ModelRef
    checkpoint: Checkpoint
    adapter: Adapter | None
    place: Place | str | None

    def weights(self, packed: bool, findings: Findings) -> Weights | None:
        """Its tensors as a merge sees them; None if the adapter does not fit, which is an error of the recipe.

        Parameters:
            packed: leave quantised tensors as they are stored.
            findings: where errors and remarks are recorded.

        Raises:
            UnsupportedError: the weights are quantised in a way that is not read.
            CheckpointError: the parts of a quantised weight are not all there, or do not fit together.
        """
        weights, adapter = weights_of(self.checkpoint, packed), self.adapter
        if adapter is None:
            return weights
        specs = {name: view.spec for name, view in weights.views.items()}
        base = Base(self.checkpoint.root, self.checkpoint.config, specs)
        fitting = _made(self.ref, self.place, findings, lambda: match_adapter(adapter, base))
        if fitting is None:
            return None
        for remark in (*adapter.remarks, *fitting.remarks):
            findings.warn(f"{self.ref}: {remark}", self.place)
        views = _changed(weights.views, fitting)
        return replace(weights, views=views, untied=fitting.head is not None)


def _changed(tensors: Mapping[str, View], fitting: Adaptation) -> dict[str, View]:
    changed = dict(tensors)
    for name, changes in fitting.changes.items():
        if fitting.head and name == fitting.head[0]:
            view = adapted(tensors[fitting.head[1]], changes)
            spec = TensorSpec(name, view.spec.dtype, view.spec.shape)
            changed[name] = InPlace(view, spec, view.names)
        else:
            changed[name] = adapted(tensors[name], changes)
    return changed


def open_reference(recipe: Recipe, ref: ModelRef, findings: Findings, hub: Hub) -> Opened | None:
    """Open what a reference names; what cannot be opened is an error of the recipe, at the place that names it.

    Parameters:
        recipe: the recipe.
        ref: one of its references.
        findings: where errors and remarks are recorded.
        hub: how models are taken from the hub.
    """
    place = recipe.place(_where(recipe, ref))
    checkpoint = _found(ref, ref.model, place, findings, lambda address: open_model(address, hub))
    adapter = None
    if ref.adapter:
        adapter = _found(
            ref, ref.adapter, place, findings, lambda address: open_adapter(local_folder(address, hub, True))
        )
    if checkpoint is None or (ref.adapter and adapter is None):
        return None
    for remark in checkpoint.remarks:
        findings.warn(f"{ref}: {remark}", place)
    return Opened(ref, checkpoint, adapter, place)


def _found(
    ref: ModelRef, address: Address, place: Place | str | None, findings: Findings, opener: Callable[[Address], _T]
) -> _T | None:
    """What is in a local folder, or on the hub."""
    opened = _made(ref, place, findings, lambda: opener(address), address)
    if opened is not None and address.revision and is_local(address):
        what = f"{address.path} is a local folder, which has no revisions: {address.revision} has no effect"
        findings.warn(what, place)
    return opened


def _made(
    ref: ModelRef, place: Place | str | None, findings: Findings, make: Callable[[], _T], address: Address | None = None
) -> _T | None:
    """What comes of opening something; None if it is an error, which is recorded."""
    try:
        return make()
    except (CheckpointError, UnsupportedError) as error:
        problem = error.problem
        known = address is not None and str(problem.place) == address.path
        inside = f" in {problem.place}" if problem.place and not known else ""
        findings.error(f"{ref}: {problem.what}{inside}", place, problem.expected, problem.hint)
        return None


def _where(recipe: Recipe, ref: ModelRef) -> str:
    """Path of the first mention of a model in the recipe."""
    if ref == recipe.base_model:
        return "base_model"
    naming = [source.path for source in recipe.every_source() if source.model == ref]
    # In the recipes of mixtures the key is `source_model`.
    found = [f"{path}.source_model" if f"{path}.source_model" in recipe.lines else f"{path}.model" for path in naming]
    found += [f"{piece.path}.base_model" for piece in recipe.every_slice() if piece.base_model == ref]
    return found[0] if found else "base_model"
