"""From a plan to bytes."""

from mergekit.engine.compute import Compute
from mergekit.engine.devices import open_device
from mergekit.engine.local import Outcome, execute
from mergekit.engine.resume import Beginning, begin

__all__ = ["Beginning", "Compute", "Outcome", "begin", "execute", "open_device"]
