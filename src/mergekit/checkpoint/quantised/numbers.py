"""What codes of at most 8 bits stand for, as tables, and stored numbers as float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint.dtypes import DType

Floats = NDArray[np.float32]


def _small_floats(mantissa: int, bias: int, special: Callable[[Floats], None]) -> Floats:
    """Floats of 8 bits: a sign, an exponent with a bias, and so many bits of mantissa."""
    magnitudes = np.arange(128)
    exponent, fraction = magnitudes >> mantissa, (magnitudes & ((1 << mantissa) - 1)).astype(np.float64)
    normal = exponent > 0
    significand = np.where(normal, 1.0, 0.0) + fraction / (1 << mantissa)
    values = np.ldexp(significand, np.where(normal, exponent, 1) - bias).astype(np.float32)
    table = np.concatenate([values, -values])
    special(table)
    return table


def _e4m3(table: Floats) -> None:
    table[[0x7F, 0xFF]] = np.nan


def _e5m2(table: Floats) -> None:
    table[[0x7C, 0xFC]] = np.inf, -np.inf
    table[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan


def _fnuz(table: Floats) -> None:
    table[0x80] = np.nan


def _e8m0() -> Floats:
    powers = np.ldexp(1.0, np.arange(256) - 127)
    powers[255] = np.nan
    return powers.astype(np.float32)


_TABLES: Mapping[str, Callable[[], Floats]] = MappingProxyType(
    {
        "F8_E4M3": lambda: _small_floats(3, 7, _e4m3),
        "F8_E5M2": lambda: _small_floats(2, 15, _e5m2),
        "F8_E4M3FNUZ": lambda: _small_floats(3, 8, _fnuz),
        "F8_E5M2FNUZ": lambda: _small_floats(2, 16, _fnuz),
        "F8_E8M0": _e8m0,
        "I8": lambda: np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32),
        # Bytes are the exponents of powers of two: no format stores whole numbers as factors.
        "U8": _e8m0,
    }
)
"""What the 256 codes of a dtype stand for."""

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32).tobytes()
"""The 16 values of a float of 4 bits (E2M1)."""


@cache
def table_of(name: str) -> bytes:
    """The float32 that each of the 256 codes of a dtype stands for.

    Parameters:
        name: safetensors name of a dtype of 8 bits that holds numbers.

    Example:
        >>> np.frombuffer(table_of("F8_E4M3"), np.float32)[[0x38, 0x7E, 0x81]]
        array([ 1.000000e+00,  4.480000e+02, -1.953125e-03], dtype=float32)
    """
    return _TABLES[name]().tobytes()


def whole_numbers(bits: int) -> bytes:
    """The float32 that each code of a signed number stands for which is stored with its range moved up to 0.

    Example:
        >>> np.frombuffer(whole_numbers(2), np.float32)
        array([-2., -1.,  0.,  1.], dtype=float32)
    """
    return (np.arange(1 << bits, dtype=np.float32) - (1 << (bits - 1))).tobytes()


def widened(octets: NDArray[np.uint8], dtype: DType) -> Floats:
    """Stored numbers as float32.

    Parameters:
        octets: their bytes.
        dtype: F64, F32, F16, BF16, or a dtype of 8 bits that :func:`table_of` knows.
    """
    if dtype.name in _TABLES:
        return np.frombuffer(table_of(dtype.name), np.float32)[octets]
    raw: NDArray[Any] = octets.view(dtype.storage)
    if dtype.name == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # what does not fit is infinite, and found in the output
        return raw.astype(np.float32)


FACTOR_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E8M0", "U8"})
"""Dtypes in which factors are stored."""
