"""What the base said about prompts, kept on the disk: the same prompts need not be run again."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.plan import Model
from mergekit.plan.fingerprint import header_hash

Rows = NDArray[Any]

FOLDER = "MERGEKIT_GATE_CACHE"
"""The variable of the environment that names another folder than the user's cache."""

_VERSION = 1  # of what is kept


def place_of(*content: object) -> Path:
    """Where something is kept that depends on a model, on prompts, and on what is done with them.

    Parameters:
        content: all of it, in the types of JSON; see :func:`stamp`.
    """
    digest = hashlib.sha256(json.dumps([_VERSION, *content], default=str).encode()).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return Path(os.environ.get(FOLDER) or home / "mergekit" / "gates") / f"{digest}.npy"


def stamp(model: Model) -> list[object]:
    """What tells a model from others and from what it was before: its config and its files, their sizes and times."""
    checkpoint, adapter = model.checkpoint, model.adapter
    files = [*checkpoint.shards, *([adapter.file] if adapter else [])]
    known = [[str(file.resolve()), *_state(file)] for file in files]
    return [known, checkpoint.config, str(adapter.config) if adapter else None]


def _state(file: Path) -> list[object]:
    if not file.is_file():
        return []
    state = file.stat()
    return [state.st_size, state.st_mtime_ns, header_hash(file)]


def recall(file: Path) -> Rows | None:
    """What is kept there; None if there is nothing."""
    with suppress(OSError, ValueError):
        found: Rows = np.load(file, allow_pickle=False)
        return found
    return None


def keep(file: Path, rows: Rows) -> None:
    """Keep an array where others may read at the same time; a disk that is full or read-only is no error."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=file.parent, suffix=".npy", delete=False) as partial:
            np.save(partial, rows)
        Path(partial.name).replace(file)
