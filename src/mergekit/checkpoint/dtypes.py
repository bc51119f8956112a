"""The element types of the safetensors format, as data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

_TITLES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
    "F6_E2M3": "float6_e2m3fn",
    "F6_E3M2": "float6_e3m2fn",
}


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Parameters:
        name: its safetensors name, ``BF16``.
        bits: size of one element in bits; less than 8 for packed types.
        kind: what the bits stand for.
        storage: NumPy dtype of the raw little-endian container: ``<u2`` for BF16, ``|u1`` for everything of 8 bits or
            less that NumPy does not know.

    Example:
        >>> DTYPES["BF16"].title, DTYPES["BF16"].bits, DTYPES["BF16"].storage
        ('bfloat16', 16, '<u2')
    """

    name: str
    bits: int
    kind: Literal["float", "int", "uint", "bool", "complex"]
    storage: str

    @property
    def title(self) -> str:
        """Its name in config.json and in torch, ``bfloat16``."""
        return _TITLES.get(self.name, f"{self.kind}{self.bits}")


DTYPES: Mapping[str, DType] = MappingProxyType(
    {
        dtype.name: dtype
        for dtype in (
            DType("BOOL", 8, "bool", "|b1"),
            DType("F4", 4, "float", "|u1"),
            DType("F6_E2M3", 6, "float", "|u1"),
            DType("F6_E3M2", 6, "float", "|u1"),
            DType("U8", 8, "uint", "|u1"),
            DType("I8", 8, "int", "|i1"),
            DType("F8_E5M2", 8, "float", "|u1"),
            DType("F8_E4M3", 8, "float", "|u1"),
            DType("F8_E8M0", 8, "float", "|u1"),
            DType("F8_E4M3FNUZ", 8, "float", "|u1"),
            DType("F8_E5M2FNUZ", 8, "float", "|u1"),
            DType("I16", 16, "int", "<i2"),
            DType("U16", 16, "uint", "<u2"),
            DType("F16", 16, "float", "<f2"),
            DType("BF16", 16, "float", "<u2"),
            DType("I32", 32, "int", "<i4"),
            DType("U32", 32, "uint", "<u4"),
            DType("F32", 32, "float", "<f4"),
            DType("C64", 64, "complex", "<c8"),
            DType("F64", 64, "float", "<f8"),
            DType("I64", 64, "int", "<i8"),
            DType("U64", 64, "uint", "<u8"),
        )
    }
)
"""Every element type by its safetensors name."""

_BY_TITLE = {dtype.title: dtype for dtype in DTYPES.values()}


def dtype_titled(title: str) -> DType:
    """Return the element type with a name as config.json and torch write it.

    Parameters:
        title: ``bfloat16``, ``float32``, ``float8_e4m3fn``, …

    Raises:
        ValueError: no type has this title; the text names the most similar one.

    Example:
        >>> dtype_titled("bfloat16").name
        'BF16'
    """
    if title not in _BY_TITLE:
        similar = difflib.get_close_matches(title, _BY_TITLE, 1)
        raise ValueError(f"unknown dtype `{title}`" + (f", did you mean `{similar[0]}`?" if similar else ""))
    return _BY_TITLE[title]
