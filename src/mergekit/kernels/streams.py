"""Streams of noise: one for every seed, tensor and model."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 31
"""Of a number of noise: it is drawn evenly from 0 to 2³¹ − 1."""


@lru_cache(1024)
def stream_keys(seed: int, tensor: str, model: int) -> NDArray[Any]:
    """Three random 32-bit numbers that belong to a seed, a tensor's name and a model's index: uint32, shape (3,).

    They cannot be written to.

    Example:
        >>> stream_keys(0, "model.norm.weight", 1).dtype.name
        'uint32'
    """
    digest = hashlib.blake2b(f"{seed} {model} {tensor}".encode(), digest_size=12, person=b"mergekit").digest()
    keys = np.frombuffer(digest, "<u4").astype(np.uint32)
    keys.flags.writeable = False
    return keys


def threshold(probability: float) -> int:
    """How many of the 2³¹ numbers of noise mean "keep": noise below it does, with this probability.

    Example:
        >>> threshold(0.5) == 1 << 30
        True
    """
    return min(1 << BITS, max(0, round(probability * (1 << BITS))))
