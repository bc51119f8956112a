"""Hashes that tell recipes and checkpoints apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mergekit import __version__
from mergekit.checkpoint import open_pickle
from mergekit.checkpoint.finding import SAFETENSORS
from mergekit.checkpoint.gguf import read_container


def recipe_hash(text: str) -> str:
    """SHA-256 of a recipe's text, hexadecimal.

    Example:
        >>> recipe_hash("merge_method: linear")[:8]
        '0a7905be'
    """
    return hashlib.sha256(text.encode()).hexdigest()


def provenance(text: str) -> dict[str, str]:
    """What the header of every file that a merge writes says about the merge.

    Parameters:
        text: the recipe.
    """
    return {"format": "pt", "mergekit_version": __version__, "mergekit_recipe": recipe_hash(text)}


def _hash_of_first(file: Path, nbytes: int) -> str:
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read(nbytes)).hexdigest()


def header_hash(file: Path) -> str:
    """SHA-256 of a weight file's header, hexadecimal: names, dtypes, shapes and places of its tensors.

    Of a pickled file it is that of the pickle, which does not say where in the file its tensors are.
    """
    if file.suffix == ".gguf":
        return _hash_of_first(file, read_container(file).nbytes)
    if file.suffix != SAFETENSORS.suffix:
        return hashlib.sha256(open_pickle(file).head).hexdigest()
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return hashlib.sha256(stream.read(size)).hexdigest()
