"""Warnings, said where Python programs look for them."""

from __future__ import annotations

import sys
import warnings


def warn(text: str) -> None:
    """Issue a `UserWarning` at the line outside of mergekit that called in."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "mergekit":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
