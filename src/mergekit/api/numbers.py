"""Whole numbers and sizes among the arguments of Python programs."""

from __future__ import annotations

import operator
from typing import Any

from mergekit.sizes import read_size


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """An argument that is a whole number, of Python or of a library.

    Parameters:
        name: of the argument.
        value: what was given for it.
        least: bound of the number, inclusive.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is less than `least`.

    Example:
        >>> whole_number("num_threads", 0, least=1)
        Traceback (most recent call last):
        ...
        ValueError: `num_threads` is 0: expected at least 1
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}: expected a whole number")
    if least is not None and number < least:
        raise ValueError(f"`{name}` is {number}: expected at least {least}")
    return number


def size(name: str, value: Any, least: int = 0) -> int:
    """An argument that is a number of bytes, or text such as "1.5GB"; see :func:`whole_number`.

    Raises:
        TypeError: it is neither text nor a whole number.
        ValueError: it is less than `least`, or text that is not a size.

    Example:
        >>> size("max_memory", "1.5GB")
        1500000000
    """
    if isinstance(value, str):
        try:
            value = read_size(value)
        except ValueError as error:
            raise ValueError(f"`{name}`: {error}") from None
    try:
        return whole_number(name, value, least)
    except TypeError as error:
        raise TypeError(f'{error} of bytes, or text such as "1.5GB"') from None
