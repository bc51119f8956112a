"""Weights read once more, in small buffers: their norms, and whether they are numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Files, Stored
from mergekit.errors import CheckpointError, Problem
from mergekit.kernels import GRAIN, RAW
from mergekit.plan.views import StoredView, View, view_of

_T = TypeVar("_T")
_STRIPE = 256 * GRAIN  # entries in memory at a time, for each thread


@dataclass(frozen=True, slots=True)
class Weight:
    """What the values of a tensor amount to.

    Parameters:
        norm: Euclidean norm of the entries that are finite.
        broken: entries that are infinite or not a number.
    """

    norm: float
    broken: int


def weigh(files: Files, stored: Stored, beside: str | None = None, grain: int = GRAIN) -> Weight:
    """Read a tensor of F64, F32, F16 or BF16.

    Parameters:
        files: where it is read from.
        stored: the tensor.
        beside: format of the reference that the kernel is given. Its values do not matter, its type does: each pair of
            types is compiled on its own, and may add up a grain in an order of its own.
        grain: entries that are added up before their sums are added up exactly.

    Raises:
        CheckpointError: the file cannot be read.
    """
    from mergekit.kernels.fused import measure

    squares: list[float] = []
    broken = 0
    for stripe in _stripes(files, stored, grain):
        row = _narrowed(stripe)
        reference = row if beside is None else np.zeros(row.size, RAW[beside])
        sums = np.empty((-(-row.size // grain), 3))
        found = measure(row, reference, grain, sums)
        broken += found if row is stripe else int(np.count_nonzero(~np.isfinite(stripe)))
        squares.extend(sums[:, 0])
    return Weight(math.sqrt(math.fsum(squares)), broken)


def weigh_all(files: Files, tensors: Iterable[Stored]) -> Iterator[tuple[Stored, Weight | Problem]]:
    """Weigh tensors on all cores; what cannot be read is a problem."""

    def weighed(stored: Stored) -> tuple[Stored, Weight | Problem]:
        try:
            return stored, weigh(files, stored)
        except CheckpointError as error:
            return stored, error.problem

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield from pool.map(weighed, tensors)


@final
class _Access:
    """What a view reads with: files, and fresh room."""

    def __init__(self, files: Files) -> None:
        self.read = files.read
        self.gather = files.gather

    def buffer(self, _use: str, nbytes: int) -> NDArray[Any]:
        return np.empty(nbytes, np.uint8)

    def kept(self, _view: View, make: Callable[[], _T]) -> _T:
        return make()


def _stripes(files: Files, stored: Stored, grain: int) -> Iterator[NDArray[Any]]:
    spec, view = stored.spec, view_of(stored)
    access = _Access(files)
    name = spec.dtype.name if isinstance(view, StoredView) else "F32"
    dtype = np.dtype(RAW.get(name, spec.dtype.storage))
    step = grain * max(1, _STRIPE // grain)
    buffer = np.empty(min(step, spec.count), dtype)
    for first in range(0, spec.count, step):
        stripe = buffer[: spec.count - first]
        if isinstance(view, StoredView):
            view.read_bytes(access, first, first + stripe.size, stripe.view(np.uint8))
        else:
            view.read(access, first, first + stripe.size, stripe)
        yield stripe


def _narrowed(stripe: NDArray[Any]) -> NDArray[Any]:
    """Entries as the kernel takes them; F64 in the precision in which the engine measures it."""
    if stripe.dtype != np.float64:
        return stripe
    with np.errstate(over="ignore"):
        return stripe.astype(np.float32)
