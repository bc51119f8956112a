"""Linear combinations: what linear, SLERP and every method on the Gram matrix end in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner
from mergekit.kernels.numbers import load, stack_array, store

Raw = NDArray[Any]

TILE = 2048  # entries; accumulators of a tile stay in the first-level cache


@inner
def _scale_into(total: Raw, row: Raw, coefficient: Any) -> None:
    for j in range(total.size):
        total[j] = coefficient * load(row[j])


@inner
def _add_into(total: Raw, row: Raw, coefficient: Any) -> None:
    for j in range(total.size):
        total[j] += coefficient * load(row[j])


@inner
def _add_delta_into(total: Raw, row: Raw, base: Raw, coefficient: Any) -> None:
    for j in range(total.size):
        total[j] += coefficient * (load(row[j]) - load(base[j]))


@inner
def _round_into(out: Raw, total: Raw) -> None:
    for j in range(out.size):
        out[j] = store(np.float32(total[j]), out[j])


def combine(rows: Raw, coefficients: Raw, out: Raw) -> None:
    """Weighted sum of the rows: ``out[j] = Σ_i coefficients[i] · rows[i, j]``.

    Parameters:
        rows: raw entries, shape (k, n), k ≥ 1.
        coefficients: shape (k,); its dtype, float32 or float64, is that of the sum.
        out: raw entries, shape (n,).
    """
    tile = stack_array(2048, coefficients)  # TILE, spelled out: the size must be a literal
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        total = tile[: stop - start]
        _scale_into(total, rows[0, start:stop], coefficients[0])
        for i in range(1, rows.shape[0]):
            _add_into(total, rows[i, start:stop], coefficients[i])
        _round_into(out[start:stop], total)


def combine_deltas(base: Raw, rows: Raw, coefficients: Raw, out: Raw) -> None:
    """The base plus a weighted sum of deltas: ``out[j] = base[j] + Σ_i coefficients[i] · (rows[i, j] − base[j])``.

    Parameters:
        base: raw entries, shape (n,).
        rows: raw entries, shape (k, n).
        coefficients: shape (k,); its dtype, float32 or float64, is that of the sum.
        out: raw entries, shape (n,).
    """
    tile = stack_array(2048, coefficients)  # TILE, spelled out: the size must be a literal
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        total = tile[: stop - start]
        origin = base[start:stop]
        _scale_into(total, origin, coefficients.dtype.type(1))
        for i in range(rows.shape[0]):
            _add_delta_into(total, rows[i, start:stop], origin, coefficients[i])
        _round_into(out[start:stop], total)


def widen(row: Raw, out: Raw) -> None:
    """Raw entries as float32."""
    for j in range(out.size):
        out[j] = load(row[j])


def narrow(row: Raw, out: Raw) -> None:
    """Float32 entries rounded to nearest even into a raw format."""
    for j in range(out.size):
        out[j] = store(row[j], out[j])
