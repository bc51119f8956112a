"""Hashes that tell recipes and checkpoints apart."""

from __future__ import annotations

import hashlib
from pathlib import Path


def recipe_hash(text: str) -> str:
    """SHA-256 of a recipe's text, hexadecimal.

    Example:
        >>> recipe_hash("merge_method: linear")[:8]
        '0a7905be'
    """
    return hashlib.sha256(text.encode()).hexdigest()


def header_hash(file: Path) -> str:
    """SHA-256 of a safetensors file's header, hexadecimal: names, dtypes, shapes and places of its tensors."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return hashlib.sha256(stream.read(size)).hexdigest()
