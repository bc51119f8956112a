"""Raw checkpoints: tensors by name in files of any origin, merged without config, architecture or tokenizer.

A recipe of fewer keys names files and folders; the tensors are matched by name. Everything else — methods, plan,
engine, writer — is that of other merges.
"""

from mergekit.raw.language import read_raw
from mergekit.raw.merging import merge_raw, planning_for
from mergekit.raw.planning import plan_raw
from mergekit.raw.selection import Matching

__all__ = ["Matching", "merge_raw", "plan_raw", "planning_for", "read_raw"]
