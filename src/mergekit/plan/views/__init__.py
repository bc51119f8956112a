"""Tensors as a merge reads them: where they lie, several as if they were one, or computed on the way in."""

from mergekit.plan.views.base import Access, StoredView, View
from mergekit.plan.views.experts import fuse_experts
from mergekit.plan.views.pieces import Pieces

__all__ = ["Access", "Pieces", "StoredView", "View", "fuse_experts"]
