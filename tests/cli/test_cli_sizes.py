"""Sizes."""

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit.cli.sizes import read_positive_size, read_size
from mergekit.sizes import UNITS


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("5000000000", 5 * 10**9),
        ("5GB", 5 * 10**9),
        ("500MB", 500 * 10**6),
        ("1.5B", 15 * 10**8),
        ("5B", 5 * 10**9),
        ("2k", 2000),
        ("2m", 2 * 10**6),
        ("3kb", 3000),
        ("1TB", 10**12),
        ("1KiB", 1024),
        ("1 mib", 2**20),
        ("0.5GiB", 2**29),
        ("2TiB", 2**41),
        (".5k", 500),
        ("  7  ", 7),
        ("0.3B", 300_000_000),
        ("0.0001k", 0),
    ],
)
def test_sizes(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize(
    "text", ["", " ", "GB", "-5", "+5", "1.5", "5X", "5 G B", "1e9", "1,5GB", "5.GB", "nan", "٥", "1_000"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(click.BadParameter, match=r"is not a size: expected .*GiB"):
        read_size(text)


@given(st.integers(0, 10**15), st.sampled_from(sorted(UNITS)), st.sampled_from([str.lower, str.upper, str.title]))
def test_whole_numbers_are_exact(number, suffix, case):
    assert read_size(f"{number}{case(suffix)}") == number * UNITS[suffix]


@given(st.integers(0, 10**9), st.integers(1, 9), st.sampled_from(sorted(set(UNITS) - {""})))
def test_decimals_are_exact_and_cut_to_bytes(number, digits, suffix):
    text = f"{number // 10**digits}.{number % 10**digits:0{digits}d}{suffix}"
    assert read_size(text) == number * UNITS[suffix] // 10**digits


@given(st.text(max_size=8))
def test_any_text_is_a_size_or_a_usage_error(text):
    try:
        assert read_size(text) >= 0
    except click.BadParameter as error:
        assert "is not a size" in error.message  # noqa: PT017


def test_zero_is_no_positive_size():
    assert read_positive_size("1") == 1
    with pytest.raises(click.BadParameter, match="more than 0"):
        read_positive_size("0 GB")
