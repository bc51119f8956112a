"""What threads read weights with, when there is nothing to be merged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Extent, Files
from mergekit.checkpoint.reading import Buffer
from mergekit.plan.views import View

Raw = NDArray[Any]
_T = TypeVar("_T")


@final
class Room(threading.local):
    """What a thread reads views with: the files, and buffers of its own."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._held: dict[str, Raw] = {}
        self._kept: dict[View, Any] = {}
        self._tensor = -1

    def turn_to(self, tensor: int) -> None:
        """Drop what views had kept of another tensor."""
        if tensor != self._tensor:
            self._kept.clear()
            self._tensor = tensor

    def kept(self, view: View, make: Callable[[], _T]) -> _T:
        """What a view needs for every chunk of a tensor."""
        if view not in self._kept:
            self._kept[view] = make()
        found: _T = self._kept[view]
        return found

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""
        self._files.read(extent, into)

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size."""
        self._files.gather(file, starts, places, nbytes, into)

    def buffer(self, use: str, nbytes: int) -> Raw:
        """Room for one use, kept between chunks."""
        held = self._held.get(use)
        if held is None or held.nbytes < nbytes:
            self._held[use] = held = np.empty(nbytes, np.uint8)
        return held[:nbytes]
