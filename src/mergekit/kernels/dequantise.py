"""Codes of a few bits to float32: with factors that stand elsewhere, or beside them in the blocks of a GGUF file.

The kernels for GGUF take the bytes of whole blocks, and room for their entries. A product of a factor in half
precision (11 bits), one of at most 7 bits and a sign, and a code of at most 5 bits and a sign is a float32 without
rounding, so that fusing its multiplication with an addition changes nothing: the entries are to the last bit those of
the library `gguf`.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner
from mergekit.kernels.numbers import f32, load, u32

Raw = NDArray[Any]
i8, i16, i32 = numba.int8, numba.int16, numba.int32


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


@inner
def _half(octets: Raw, place: Any) -> Any:
    return load(i16(u32(octets[place]) | u32(octets[place + 1]) << u32(8)))


def unpack_q4_0(octets: Raw, out: Raw) -> None:
    """Blocks of 32 entries: a factor; codes of 4 bits, those of the second half in the upper bits."""
    for block in range(out.size // 32):
        place, first = block * 18, block * 32
        scale = _half(octets, place)
        for entry in range(16):
            code = octets[place + 2 + entry]
            out[first + entry] = scale * f32(i32(code & 15) - i32(8))
            out[first + 16 + entry] = scale * f32(i32(code >> 4) - i32(8))


def unpack_q8_0(octets: Raw, out: Raw) -> None:
    """Blocks of 32 entries: a factor; whole numbers of 8 bits."""
    for block in range(out.size // 32):
        place, first = block * 34, block * 32
        scale = _half(octets, place)
        for entry in range(32):
            out[first + entry] = scale * f32(i8(octets[place + 2 + entry]))


@inner
def _factors(octets: Raw, place: Any, group: Any) -> Any:
    """Factor and minimum of a group of 32 entries, from 2 factors of the block and 12 bytes with 8 times 2 · 6 bits."""
    scale, least = _half(octets, place), _half(octets, place + 2)
    own = place + 4 + group
    if group < 4:
        return scale * f32(octets[own] & 63), least * f32(octets[own + 4] & 63)
    low, high = octets[own + 4], own - 4
    factor = (low & 15) | ((octets[high] >> 2) & 48)
    return scale * f32(factor), least * f32((low >> 4) | ((octets[high + 4] >> 2) & 48))


def unpack_q4_k(octets: Raw, out: Raw) -> None:
    """Blocks of 8 groups of 32 entries: factors; codes of 4 bits, those of every second group in the upper bits."""
    for block in range(out.size // 256):
        place, first = block * 144, block * 256
        for group in range(8):
            scale, least = _factors(octets, place, group)
            codes, shift = place + 16 + group // 2 * 32, group % 2 * 4
            for entry in range(32):
                code = (octets[codes + entry] >> shift) & 15
                out[first + group * 32 + entry] = scale * f32(i32(code)) - least


def unpack_q5_k(octets: Raw, out: Raw) -> None:
    """The same with a fifth bit for each code: 32 bytes with that of a group in each bit."""
    for block in range(out.size // 256):
        place, first = block * 176, block * 256
        for group in range(8):
            scale, least = _factors(octets, place, group)
            codes, shift = place + 48 + group // 2 * 32, group % 2 * 4
            for entry in range(32):
                high = (octets[place + 16 + entry] >> group) & 1
                code = ((octets[codes + entry] >> shift) & 15) | high << 4
                out[first + group * 32 + entry] = scale * f32(i32(code)) - least


def unpack_q6_k(octets: Raw, out: Raw) -> None:
    """Blocks of 16 groups of 16 entries: lower 4 bits and upper 2 bits of codes; whole numbers as factors; a factor."""
    for block in range(out.size // 256):
        place, first = block * 210, block * 256
        factor = _half(octets, place + 208)
        for group in range(16):
            scale = factor * f32(i8(octets[place + 192 + group]))
            half, run, rest = group // 8, group // 2 % 4, group % 2 * 16
            lows, low_shift = place + half * 64 + run % 2 * 32 + rest, run // 2 * 4
            highs, high_shift = place + 128 + half * 32 + rest, run * 2
            for entry in range(16):
                low = (octets[lows + entry] >> low_shift) & 15
                high = (octets[highs + entry] >> high_shift) & 3
                out[first + group * 16 + entry] = scale * f32(i32(low | high << 4) - i32(32))
