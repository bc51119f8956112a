"""Counter-based noise: a hash of (keys, index of the entry), so that no number depends on what was drawn before it.

The hash is three rounds of multiplication and shifting (the constants are those of Wellons' `triple32`, found by search
for least bias), with a key added before each round: a single key would make two streams shifted copies of one another.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from mergekit.kernels.compiling import inner
from mergekit.kernels.numbers import u32

Raw = NDArray[Any]

HIGH = 0x9E3779B9  # spreads the upper half of the index over the second key


@inner
def hashed(low: Any, first: Any, second: Any, third: Any) -> Any:
    """31 random bits for the lower half of an index; the upper half is in the second key."""
    x = u32(low + first)  # every step is cut to 32 bits: the compiler adds up in 64
    x = u32(u32(x ^ (x >> u32(17))) * u32(0xED5AD4BB))
    x = u32(x + second)
    x = u32(u32(x ^ (x >> u32(11))) * u32(0xAC4C1B51))
    x = u32(x + third)
    x = u32(u32(x ^ (x >> u32(15))) * u32(0x31848BAB))
    return u32(u32(x ^ (x >> u32(14))) >> u32(1))


@inner
def _run(out: Raw, low: Any, first: Any, second: Any, third: Any) -> None:
    for j in range(out.size):
        out[j] = hashed(u32(low + u32(j)), first, second, third)


@inner
def noise_into(out: Raw, start: Any, keys: Raw) -> None:
    """Noise of consecutive entries: uint32 below 2³¹."""
    border = ((start >> 32) + 1) << 32  # the upper half of the index changes at most once
    head = min(out.size, border - start)
    high = u32(start >> 32)
    _run(out[:head], u32(start & 0xFFFFFFFF), keys[0], u32(keys[1] + u32(high * u32(HIGH))), keys[2])
    if head < out.size:
        _run(out[head:], u32(0), keys[0], u32(keys[1] + u32(u32(high + u32(1)) * u32(HIGH))), keys[2])


def noise(start: int, keys: Raw, out: Raw) -> None:
    """Numbers drawn evenly from 0 to 2³¹ − 1, one for each entry.

    Parameters:
        start: index in the tensor of the first entry.
        keys: uint32, shape (3,); see :func:`mergekit.kernels.streams.stream_keys`.
        out: uint32, shape (n,), written.
    """
    noise_into(out, start, keys)
