"""Moving entries towards a model, by no more than a given distance: the fused kernel of NearSwap."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from mergekit.kernels.numbers import f32, load, store

Raw = NDArray[Any]


def approach(base: Raw, row: Raw, reach: float, out: Raw) -> None:
    """Move each entry of the base towards that of a row, by no more than `reach`.

    ``out = base + g · (row − base)`` with ``g = min(1, reach / max(|row − base|, 1e-6))``; exactly the row's entry
    where g is 1.

    Parameters:
        base, row, out: raw entries, shape (n,).
        reach: at least 0.
    """
    most, least = f32(reach), f32(1e-6)
    for j in range(out.size):
        origin, entry = load(base[j]), load(row[j])
        delta = entry - origin
        distance = abs(delta)
        share = most / (least if distance < least else distance)
        merged = entry if share >= f32(1) else origin + share * delta
        out[j] = store(merged, out[j])
