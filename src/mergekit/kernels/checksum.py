"""A checksum of a tensor's bytes that can be taken piece by piece, in any order and in pieces of any size."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mergekit.kernels.compiling import inner

Raw = NDArray[Any]

u64 = numba.uint64

PAGE = 1024
"""Words, of 4 bytes each, that share a factor."""

_MASK = (1 << 64) - 1


def _random(number: int) -> int:
    """Output `number` of splitmix64 with seed 0, with its lowest bit set."""
    x = (number + 1) * 0x9E3779B97F4A7C15 & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return (x ^ x >> 31) | 1


_KEYS = np.array([_random(number) for number in range(PAGE)], np.uint64)  # in the machine code, as a constant


@inner
def _page_key(page: Any) -> Any:
    """What `_random` gives for a page, whose numbers follow those of the words."""
    x = u64(page + 1 + PAGE) * u64(0x9E3779B97F4A7C15)
    x = u64(x ^ (x >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    x = u64(x ^ (x >> u64(27))) * u64(0x94D049BB133111EB)
    return u64(x ^ (x >> u64(31))) | u64(1)


def _word_at(_context: Any, octets: Any, first: Any) -> Any:
    """The word in 4 bytes, wherever they begin."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        word: Any = builder.load(builder.bitcast(place, ir.IntType(32).as_pointer()))
        word.align = 1
        return word

    return types.uint32(octets, first), emit


_word: Any = intrinsic(_word_at)


@inner
def _words(octets: Raw, keys: Raw) -> Any:
    """Sum of the words of a page, each times its key."""
    total = u64(0)
    for j in range(keys.size):
        total += u64(_word(octets, 4 * j)) * keys[j]
    return total


@inner
def _edge(octets: Raw, start: Any) -> Any:
    """What less than a word adds."""
    total = u64(0)
    for j in range(octets.size):
        number = (start + j) >> 2
        total += (u64(octets[j]) << u64(8 * ((start + j) & 3))) * _KEYS[number % PAGE] * _page_key(number // PAGE)
    return total


def checksum(octets: Raw, start: int) -> int:
    """The checksum of a tensor, or what some of its bytes add to it.

    The bytes of a tensor, as they are stored (little-endian, in row-major order), are filled up with zeros to whole
    words of 4 bytes. Word number i, a little-endian number, is multiplied by::

        key(i % 1024) · key(1024 + i // 1024)

    and all products are added up; everything modulo 2⁶⁴. `key(n)` is output number n, counted from 0, of the generator
    splitmix64 with seed 0, with its lowest bit set. Reports show the sum as 16 hexadecimal digits, ``f"{sum:016x}"``.

    What a byte adds depends on nothing but itself and its place. So the sums of the pieces of a tensor, however it is
    cut, add up to the checksum of the tensor, modulo 2⁶⁴. A single changed word always changes the checksum; several
    that change without regard to the keys go unnoticed with a probability of 2⁻³³ at most, and of about 2⁻⁶⁴ in
    general. It finds accidents, not forgeries.

    Parameters:
        octets: uint8, shape (n,).
        start: where they begin, in bytes from the beginning of the tensor; at least 0.

    Returns:
        The sum as a signed number of 64 bits: `% 2**64` is the one that reports show.
    """
    first = min(octets.size, -start & 3)
    total = _edge(octets[:first], start)
    while octets.size - first >= 4:
        page, begin = divmod((start + first) >> 2, PAGE)
        count = min((octets.size - first) >> 2, PAGE - begin)
        total += _words(octets[first : first + 4 * count], _KEYS[begin : begin + count]) * _page_key(page)
        first += 4 * count
    total += _edge(octets[first:], start + first)
    signed: int = total
    return signed
