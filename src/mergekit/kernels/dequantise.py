"""Codes of a few bits to float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner

Raw = NDArray[Any]


@inner
def _run(
    octets: Raw,
    table: Raw,
    bits: Any,
    flip: Any,
    bit: Any,
    step: Any,
    zero: Any,
    gain: Any,
    factor: Any,
    out: Raw,
    place: Any,
    stride: Any,
    count: Any,
) -> None:
    """Entries of one line that share a factor; `bit` is where the first code is, `place` where the first entry goes."""
    mask = (1 << bits) - 1
    for _ in range(count):
        code = (octets[bit >> 3] >> ((bit & 7) ^ flip)) & mask
        out[place] = (table[code] - zero) * gain * factor
        bit += step
        place += stride


def dequantise(octets: Raw, table: Raw, scales: Raw, zeros: Raw, factor: Any, kind: Raw, axes: Raw, out: Raw) -> None:
    """Entries of a rectangle: ``out[…] = (table[code] − zero) · scale · factor``.

    Parameters:
        octets: bytes with the codes, the lowest bits of a byte first.
        table: float32 of each code.
        scales: factors of the rectangle, float32.
        zeros: zero points by the same places, or none.
        factor: of all entries.
        kind: bits of a code; 4 if the first of two codes in a byte is the upper one, else 0; bit in `octets` of the
            first code; number of the first factor in `scales`; place in `out` of the first entry.
        axes: of the outer and of the inner axis: first, last, bits from code to code, places from entry to entry,
            entries that share a factor, factors from block to block; shape (2, 6).
        out: float32.
    """
    outer, inner_axis = axes[0], axes[1]
    gain = np.float32(factor)
    for line in range(outer[0], outer[1]):
        shared = line // outer[4] * outer[5] - kind[3]
        bit = kind[2] + (line - outer[0]) * outer[2]
        place = kind[4] + (line - outer[0]) * outer[3]
        begin = inner_axis[0]
        while begin < inner_axis[1]:
            block = begin // inner_axis[4]
            count = min((block + 1) * inner_axis[4], inner_axis[1]) - begin
            which = shared + block * inner_axis[5]
            zero = zeros[which] if zeros.size else np.float32(0)
            _run(
                octets,
                table,
                kind[0],
                kind[1],
                bit,
                inner_axis[2],
                zero,
                scales[which],
                gain,
                out,
                place,
                inner_axis[3],
                count,
            )
            bit += count * inner_axis[2]
            place += count * inner_axis[3]
            begin += count
