"""Tensors of a model with those of an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from mergekit.adapters import Change, ExpertProducts, NewNorms, Offset, Product, Replacement
from mergekit.plan.views.base import View
from mergekit.plan.views.expert_products import ManyLowRank
from mergekit.plan.views.low_rank import InPlace, LowRank, NewRows, Normed, Shifted
from mergekit.plan.views.pieces import Pieces
from mergekit.plan.views.stored import view_of


def adapted(view: View, changes: Sequence[Change]) -> View:
    """A tensor after what an adapter does to it.

    Parameters:
        view: the tensor of the base; name and dtype stay its own.
        changes: in their order.
    """
    return reduce(_changed, changes, view)


def _changed(view: View, change: Change) -> View:
    if isinstance(change, Product):
        return LowRank(view, view_of(change.a), view_of(change.b), change.scale, change.transposed)
    if isinstance(change, ExpertProducts):
        return ManyLowRank(view, view_of(change.a), view_of(change.b), change.scale, change.transposed)
    if isinstance(change, NewNorms):
        return Normed(view, view_of(change.magnitudes), change.transposed)
    if isinstance(change, Offset):
        return Shifted(view, view_of(change.values), change.scale)
    if isinstance(change, Replacement):
        return _replaced(view, view_of(change.values))
    return NewRows(view, view_of(change.values), change.numbers)


def _replaced(view: View, other: View) -> View:
    """Bytes as they are stored if they have the dtype of the base, entries to be rounded to it if not."""
    if isinstance(other, Pieces) and other.spec.dtype == view.spec.dtype:
        return Pieces(view.spec, other.pieces, view.names)
    return InPlace(other, view.spec, view.names)
