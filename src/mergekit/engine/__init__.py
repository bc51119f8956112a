"""From a plan to bytes."""

from mergekit.engine.compute import Compute, open_device
from mergekit.engine.local import Outcome, execute

__all__ = ["Compute", "Outcome", "execute", "open_device"]
