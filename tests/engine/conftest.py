"""Checkpoints are made by the module that the tests of whole merges use; references are those of the methods."""

import sys
from pathlib import Path

for folder in ("merging", "methods", "kernels"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
