"""Normal numbers that are a function of seed, matrix, token and entry, and of nothing that was drawn before.

Public: :func:`normal_rows`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WHOLE = 1 << 31  # how many numbers of noise there are


def normal_rows(seed: int, name: str, tokens: NDArray[np.int64], width: int) -> NDArray[Any]:
    """Rows of standard normal numbers, one for each token, float64, shape (n, width): Box and Muller's transform.

    Parameters:
        seed: of all randomness.
        name: what they are for.
        tokens: ids of the tokens.
        width: numbers for each.
    """
    from mergekit.kernels.fused import noise
    from mergekit.kernels.streams import stream_keys

    keys = stream_keys(seed, name, 0)
    drawn = np.empty((tokens.size, 2 * width), np.uint32)
    for row, token in zip(drawn, tokens.tolist(), strict=True):
        noise(2 * width * token, keys, row)
    even = (drawn + 0.5) / _WHOLE
    result: NDArray[Any] = np.sqrt(-2 * np.log(even[:, :width])) * np.cos(2 * np.pi * even[:, width:])
    return result
