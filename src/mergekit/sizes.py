"""Sizes in bytes as users write them."""

from __future__ import annotations

import re
from fractions import Fraction

UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "b": 10**9,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
"""Bytes by suffix. A lone `b` is a billion, as in `7B`."""

EXPECTED = "a whole number of bytes, or a number with one of k, m, b (billion), kB, MB, GB, TB, KiB, MiB, GiB, TiB"


def read_size(text: str) -> int:
    """Read a size; a fraction of a byte is dropped.

    Parameters:
        text: digits, with a fraction only if a suffix follows; the case of the suffix does not matter.

    Raises:
        ValueError: it is not a size.

    Example:
        >>> read_size("1.5GB"), read_size("5B"), read_size("1 MiB")
        (1500000000, 5000000000, 1048576)
    """
    match = re.fullmatch(r"([0-9]+|[0-9]*\.[0-9]+)\s*([a-z]*)", text.strip().lower())
    number, suffix = match.groups() if match else ("", "?")
    if suffix not in UNITS or ("." in number and not suffix):
        raise ValueError(f"`{text}` is not a size: expected {EXPECTED}")
    return int(Fraction(number) * UNITS[suffix])
