"""What can be said about a merge before a weight is read: what stands in its way, and what it will cost."""

from mergekit.preview.checks import Check, Job, check_merge
from mergekit.preview.costs import Estimate, estimate
from mergekit.preview.nodes import Spread, spread
from mergekit.preview.space import Space

__all__ = ["Check", "Estimate", "Job", "Space", "Spread", "check_merge", "estimate", "spread"]
