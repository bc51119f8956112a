"""Sizes as values of options."""

from __future__ import annotations

import click

from mergekit import sizes


def read_size(text: str) -> int:
    """Read an option's value as :func:`mergekit.sizes.read_size` does.

    Raises:
        click.BadParameter: it is not a size.
    """
    try:
        return sizes.read_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def read_positive_size(text: str) -> int:
    """Read a size that is not 0.

    Raises:
        click.BadParameter: it is not a size, or it is 0.
    """
    size = read_size(text)
    if not size:
        raise click.BadParameter("expected more than 0 bytes")
    return size
