"""Fused CPU kernels: raw entries in, float32 arithmetic in registers, raw entries out.

A kernel tells storage formats apart by the NumPy dtype of the raw array:

========  ===========  ==============================
format    raw array    note
========  ===========  ==============================
BF16      ``uint16``   upper half of a float32
F16       ``int16``    signed only to differ from BF16
F32       ``float32``
========  ===========  ==============================
"""

from collections.abc import Mapping
from types import MappingProxyType

RAW: Mapping[str, str] = MappingProxyType({"BF16": "<u2", "F16": "<i2", "F32": "<f4"})
"""NumPy dtype of the raw array by safetensors dtype name; other formats are converted before and after a kernel."""

GRAIN = 4096
"""Entries over which a sum is taken at once; stripes hold whole grains, so that sums do not depend on stripes."""

BINS = 1 << 14
"""Bins of one counting sweep."""


def grains(entries: int) -> int:
    """How many grains hold this many entries.

    Example:
        >>> grains(4097)
        2
    """
    return -(-entries // GRAIN)
