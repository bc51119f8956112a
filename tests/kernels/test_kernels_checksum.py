"""The checksum is what its description says, piece by piece and in any order, and finds what goes wrong."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit.kernels.fused import checksum

WORDS = 1 << 64
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 4095, 4096, 4097, 12_289)


def key(number):
    """Output `number` of splitmix64 with seed 0, made odd."""
    x = (number + 1) * 0x9E3779B97F4A7C15 % WORDS
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORDS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORDS
    return (x ^ (x >> 31)) | 1


def described(octets):
    """The checksum by its description, in whole numbers of any size."""
    padded = bytes(octets) + bytes(-len(octets) % 4)
    words = np.frombuffer(padded, "<u4").tolist()
    return sum(word * key(i % 1024) * key(1024 + i // 1024) for i, word in enumerate(words)) % WORDS


def drawn(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def test_splitmix64_is_the_known_one():
    """The first outputs with seed 0, as its author publishes them, but for the lowest bit."""
    assert [key(0), key(1), key(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F5, 0x06C45D188009454F]


@pytest.mark.parametrize("size", SIZES)
def test_it_is_what_it_says(size):
    octets = drawn(size, size)
    assert checksum(octets, 0) % WORDS == described(octets)


def test_it_stays_what_it_was():
    """Reports hold it: another definition needs another name."""
    octets = (np.arange(10_000) % 251).astype(np.uint8)
    assert f"{checksum(octets, 0) % WORDS:016x}" == f"{described(octets):016x}" == "05940d74096a7b56"


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 3 * 4096 + 7),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    order=st.randoms(use_true_random=False),
    shift=st.integers(0, 7),
)
def test_pieces_of_any_size_in_any_order_add_up(size, cuts, order, shift):
    """Wherever a piece lies in memory, too."""
    octets = drawn(size + shift, size)[shift:]
    edges = sorted({0, size, *(int(cut * size) for cut in cuts)})
    pieces = list(pairwise(edges))
    order.shuffle(pieces)
    total = sum(checksum(octets[start:stop], start) for start, stop in pieces)
    assert total % WORDS == checksum(octets, 0) % WORDS


@pytest.mark.parametrize("start", [1 << 20, (1 << 33) + 5, (1 << 45) - 3])
def test_pieces_far_from_the_beginning(start):
    octets = drawn(5000, 1)
    expected = 0
    for place, octet in enumerate(octets.tolist(), start):
        word = place // 4
        expected += (octet << 8 * (place % 4)) * key(word % 1024) * key(1024 + word // 1024)
    assert checksum(octets, start) % WORDS == expected % WORDS


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9000), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(size, place, bit):
    octets = drawn(size, size)
    before = checksum(octets, 0)
    octets[int(place * size)] ^= 1 << bit
    assert checksum(octets, 0) != before


def test_lost_and_exchanged_pages_are_found():
    whole = drawn(16 * 4096, 3)
    found = {checksum(whole, 0)}
    for page in range(16):
        for changed in (0, 255):
            octets = whole.copy()
            octets[page * 4096 : (page + 1) * 4096] = changed
            found.add(checksum(octets, 0))
    for page in range(15):
        octets = whole.reshape(16, 4096).copy()
        octets[[page, page + 1]] = octets[[page + 1, page]]
        found.add(checksum(octets.reshape(-1), 0))
    torn = whole.copy()
    torn[512:] = drawn(16 * 4096, 4)[512:]
    found.add(checksum(torn, 0))
    assert len(found) == 1 + 32 + 15 + 1


def test_signs_flipped_in_pairs_are_found():
    """Words that change in their highest bits only: of two in 64 bits the sum would be what it was."""
    whole = drawn(4096, 5)
    seen = set()
    for word in range(1, 1024):
        octets = whole.copy()
        octets[[3, 4 * word + 3]] ^= 0x80
        seen.add(checksum(octets, 0))
    assert len(seen) == 1023
    assert checksum(whole, 0) not in seen
