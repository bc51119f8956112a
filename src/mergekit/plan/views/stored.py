"""The view of a stored tensor, however it lies in its file."""

from __future__ import annotations

from mergekit.checkpoint import Stored
from mergekit.plan.views.base import View
from mergekit.plan.views.blocks import Unpacked
from mergekit.plan.views.pieces import Pieces
from mergekit.plan.views.strided import Strided


def view_of(stored: Stored) -> View:
    """A stored tensor as a merge sees it: as it is, its entries put in order, or its blocks unpacked."""
    if stored.blocks is not None:
        return Unpacked.of(stored)
    return Pieces.of(stored) if stored.strides is None else Strided.of(stored)
