"""Tensors as a merge reads them: where they lie, several as if they were one, or computed on the way in."""

from mergekit.plan.views.adapted import adapted
from mergekit.plan.views.aligned import Aligned, RowMap, aligned
from mergekit.plan.views.base import Access, StoredView, View
from mergekit.plan.views.blocks import Unpacked
from mergekit.plan.views.corner import Corner, corner
from mergekit.plan.views.experts import fuse_experts
from mergekit.plan.views.held import Held
from mergekit.plan.views.joined import Joined
from mergekit.plan.views.low_rank import InPlace, LowRank, NewRows, Normed, Shifted
from mergekit.plan.views.pieces import Pieces
from mergekit.plan.views.quantised import Dequantised
from mergekit.plan.views.stored import view_of
from mergekit.plan.views.strided import Strided

__all__ = [
    "Access",
    "Aligned",
    "Corner",
    "Dequantised",
    "Held",
    "InPlace",
    "Joined",
    "LowRank",
    "NewRows",
    "Normed",
    "Pieces",
    "RowMap",
    "Shifted",
    "StoredView",
    "Strided",
    "Unpacked",
    "View",
    "adapted",
    "aligned",
    "corner",
    "fuse_experts",
    "view_of",
]
