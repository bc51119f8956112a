"""Where the mathematics runs: fused kernels on the CPU, or the same lines on torch tensors on any device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.methods import Block, Method
from mergekit.methods.contract import Stats, Target

Raw = NDArray[Any]
Loaded = Any
"""Operands of a stripe where they are computed with, as the bench that loaded them knows them."""


class Workbench(ABC):
    """What one worker computes with; one thread uses it at a time.

    Nothing that is begun has to be done when a call returns. What is given to a call must stay as it is until the
    stripe's merge was waited for, or its rows have landed.
    """

    depth: int = 1
    """Stripes that are under way at a time, each in host buffers of its own."""

    def room(self, nbytes: int) -> Raw:
        """Host memory that operands are read into, or the output is taken from."""
        return np.empty(nbytes, np.uint8)

    def at_work(self) -> AbstractContextManager[None]:
        """Everything else is called within this; after an error in it, nothing is under way any more."""
        return nullcontext()

    @abstractmethod
    def load(self, rows: Raw) -> Loaded:
        """Begin to bring raw rows, shape (k, n), to where they are computed with."""

    @abstractmethod
    def block(self, loaded: Loaded, based: bool, start: int, target: Target) -> Block:
        """A block of them, whose first entry has index `start` in the target."""

    @abstractmethod
    def merge(self, method: Method, block: Block, stats: Stats, out: Raw) -> Callable[[], None]:
        """Begin to write the merged entries of a block into `out`; what is returned waits until they are there."""

    def landed(self, loaded: Loaded) -> None:
        """Wait until the host's rows are free again."""
        del loaded

    def keep(self, start: int, stop: int, loaded: Loaded) -> None:
        """Keep what is loaded of a tensor for its next sweep, if there is room for it."""
        del start, stop, loaded

    def kept(self, start: int, stop: int) -> Loaded | None:
        """What is kept of these entries."""
        del start, stop
        return None

    def fetch(self, loaded: Loaded, into: Raw) -> Callable[[], None]:
        """Begin to bring the first row of what is kept back to the host; what is returned waits until it is there."""
        raise NotImplementedError

    def forget(self) -> None:
        """Let go of all that is kept."""
        return

    def release(self) -> None:
        """Let go of all memory that is not in use, and keep nothing any more."""
        return

    def settle(self) -> None:
        """Wait for all that is under way."""
        return

    def for_sweeps(self) -> Workbench:
        """What sweeps are computed with."""
        return self

    def is_full(self, error: Exception) -> bool:
        """Whether an error says that the memory of the device does not suffice."""
        del error
        return False


class Compute(ABC):
    """One device, or several that are alike."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What computes."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Its software, and its kind: the same name and version, the same bytes."""

    @property
    def devices(self) -> tuple[str, ...]:
        """As torch names them; none for the kernels."""
        return ()

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know about the choice."""
        return ()

    def seats(self, workers: int) -> Sequence[Compute]:
        """Where each of at most so many workers computes."""
        return [self] * workers

    @abstractmethod
    def bench(self) -> Workbench:
        """For one worker."""

    def record(self) -> dict[str, object]:
        """For the report."""
        return {"name": self.name, "version": self.version, **({"devices": self.devices} if self.devices else {})}


@final
class _FusedWorkbench(Workbench):
    """The rows stay where they are, and one stripe is finished before the next is read: it is in the cache."""

    def load(self, rows: Raw) -> Raw:
        return rows

    def block(self, loaded: Raw, based: bool, start: int, target: Target) -> Block:
        from mergekit.kernels import fused

        return Block(loaded, based, start, fused, target)

    def merge(self, method: Method, block: Block, stats: Stats, out: Raw) -> Callable[[], None]:
        method.fuse(block, stats, out)
        return _done


@final
@dataclass(frozen=True, slots=True)
class Fused(Compute):
    """Kernels on the CPU.

    Parameters:
        why: what a user should know about the choice.
    """

    why: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The same on every machine."""
        return "kernels"

    @property
    def version(self) -> str:
        """That of the kernels, for this processor."""
        from mergekit.kernels.compiled import fingerprint

        return fingerprint()

    @property
    def notices(self) -> tuple[str, ...]:
        """Why there is no device."""
        return self.why

    def bench(self) -> Workbench:
        """For one worker."""
        return _FusedWorkbench()


def _done() -> None:
    """Nothing to wait for."""
