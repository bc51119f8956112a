"""Files that a command writes beside its answer: whether they can be written is known before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import click

PICTURES = (".png", ".svg", ".pdf")

_File = TypeVar("_File", str, Path)


def writable(_ctx: click.Context, _param: click.Parameter, file: _File | None) -> _File | None:
    """Refuse a file that could not be written afterwards; - is stdout."""
    if file is not None and str(file) != "-" and not Path(file).absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder `{Path(file).parent}`")
    return file


def picture(ctx: click.Context, param: click.Parameter, file: _File | None) -> _File | None:
    """Refuse a file that could not be written afterwards, or is of a kind that is not drawn."""
    if file is not None and not str(file).lower().endswith(PICTURES):
        raise click.BadParameter(f"`{file}` does not end in one of {', '.join(PICTURES)}")
    return writable(ctx, param, file)
