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


@inner
def _combine_into(out: Raw, total: Raw, base: Raw, rows: Raw, coefficients: Raw, start: Any) -> None:
    """The entries from `start` on; a base without entries stands for none."""
    stop = start + total.size
    if base.size == 0:
        _scale_into(total, rows[0, start:stop], coefficients[0])
        for i in range(1, rows.shape[0]):
            _add_into(total, rows[i, start:stop], coefficients[i])
    else:
        _scale_into(total, base[start:stop], coefficients.dtype.type(1))
        for i in range(rows.shape[0]):
            _add_delta_into(total, rows[i, start:stop], base[start:stop], coefficients[i])
    _round_into(out[start:stop], total)


def combine(rows: Raw, coefficients: Raw, out: Raw) -> None:
    """Weighted sum of the rows: ``out[j] = Σ_i coefficients[i] · rows[i, j]``.

    Parameters:
        rows: raw entries, shape (k, n), k ≥ 1.
        coefficients: shape (k,); its dtype, float32 or float64, is that of the sum.
        out: raw entries, shape (n,).
    """
    tile = stack_array(2048, coefficients)  # TILE, spelled out: the size must be a literal
    for start in range(0, out.size, TILE):
        _combine_into(out, tile[: min(TILE, out.size - start)], rows[0, :0], rows, coefficients, start)


def combine_deltas(base: Raw, rows: Raw, coefficients: Raw, out: Raw) -> None:
    """The base plus a weighted sum of deltas: ``out[j] = base[j] + Σ_i coefficients[i] · (rows[i, j] − base[j])``.

    Parameters:
        base: raw entries, shape (n,).
        rows: raw entries, shape (k, n).
        coefficients: shape (k,); its dtype, float32 or float64, is that of the sum.
        out: raw entries, shape (n,).
    """
    tile = stack_array(2048, coefficients)
    for start in range(0, out.size, TILE):
        _combine_into(out, tile[: min(TILE, out.size - start)], base, rows, coefficients, start)


def combine_rows(base: Raw, rows: Raw, coefficients: Raw, out: Raw) -> None:
    """Combine matrices or their deltas, each line of them with coefficients of its own.

    Parameters:
        base: raw entries, shape (n,), or (0,) for none.
        rows: raw entries, shape (k, n), k ≥ 1: the lines of k matrices, one after the other.
        coefficients: shape (lines, k); its dtype, float32 or float64, is that of the sum.
        out: raw entries, shape (n,).
    """
    tile = stack_array(2048, coefficients)
    width = out.size // max(1, coefficients.shape[0])
    for line in range(coefficients.shape[0]):
        last = (line + 1) * width
        for start in range(line * width, last, TILE):
            _combine_into(out, tile[: min(TILE, last - start)], base, rows, coefficients[line], start)


@inner
def _multiply_into(total: Raw, row: Raw, coefficients: Raw) -> None:
    for j in range(total.size):
        total[j] += coefficients[j] * load(row[j])


@inner
def _multiply_delta_into(total: Raw, row: Raw, base: Raw, coefficients: Raw) -> None:
    for j in range(total.size):
        total[j] += coefficients[j] * (load(row[j]) - load(base[j]))


def combine_columns(base: Raw, rows: Raw, coefficients: Raw, out: Raw) -> None:
    """Combine matrices or their deltas, each column of them with coefficients of its own.

    Parameters:
        base: raw entries, shape (n,), or (0,) for none.
        rows: raw entries, shape (k, n): the lines of k matrices of m columns, one after the other.
        coefficients: shape (k, m); its dtype, float32 or float64, is that of the sum.
        out: raw entries, shape (n,).
    """
    tile = stack_array(2048, coefficients)
    width = coefficients.shape[1]
    for line in range(out.size // max(1, width)):
        for left in range(0, width, TILE):
            right = min(left + TILE, width)
            start, stop = line * width + left, line * width + right
            total = tile[: right - left]
            if base.size == 0:
                _scale_into(total, rows[0, start:stop], coefficients.dtype.type(0))
                for i in range(rows.shape[0]):
                    _multiply_into(total, rows[i, start:stop], coefficients[i, left:right])
            else:
                _scale_into(total, base[start:stop], coefficients.dtype.type(1))
                for i in range(rows.shape[0]):
                    origin = base[start:stop]
                    _multiply_delta_into(total, rows[i, start:stop], origin, coefficients[i, left:right])
            _round_into(out[start:stop], total)


def widen(row: Raw, out: Raw) -> None:
    """Raw entries as float32."""
    for j in range(out.size):
        out[j] = load(row[j])


def narrow(row: Raw, out: Raw) -> None:
    """Float32 entries rounded to nearest even into a raw format."""
    for j in range(out.size):
        out[j] = store(row[j], out[j])
