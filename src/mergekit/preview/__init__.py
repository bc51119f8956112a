"""What can be said about a merge before a weight is read: what stands in its way, and what it will cost."""

from mergekit.preview.checks import Check, Job, check_merge, refuse_input
from mergekit.preview.costs import Estimate, estimate
from mergekit.preview.nodes import Spread, spread
from mergekit.preview.space import Space, room_for

__all__ = [
    "Check",
    "Estimate",
    "Job",
    "Space",
    "Spread",
    "check_merge",
    "estimate",
    "refuse_input",
    "room_for",
    "spread",
]
