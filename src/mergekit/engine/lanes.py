"""What runs on a device beside each other: copies to it, mathematics, and copies back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, final

Lane = Literal["up", "work", "down"]
"""Copies to the device; mathematics; copies back to the host."""

Mark = Any
"""A place in a lane, behind all that was begun there before."""


class Lanes(ABC):
    """Three queues of one worker on one device: each in its order, all at the same time."""

    waits: bool = False
    """Whether the host has to wait for what it begins."""

    @abstractmethod
    def at(self, lane: Lane) -> AbstractContextManager[Any]:
        """What is begun within this is of that lane."""

    @abstractmethod
    def mark(self, lane: Lane) -> Mark:
        """Where the lane is now."""

    @abstractmethod
    def follow(self, lane: Lane, mark: Mark, tensor: Any) -> None:
        """Let a lane go on behind a mark of another, and hold the memory of a tensor until it has come that far."""

    @abstractmethod
    def wait(self, mark: Mark) -> None:
        """Let the host wait for all before a mark."""

    @abstractmethod
    def drain(self) -> None:
        """Let the host wait for everything."""


@final
class NoLanes(Lanes):
    """Everything is done when it is begun: the CPU, and devices without streams."""

    def at(self, lane: Lane) -> AbstractContextManager[Any]:
        """No matter where."""
        del lane
        return nullcontext()

    def mark(self, lane: Lane) -> Mark:
        """None is needed."""
        del lane

    def follow(self, lane: Lane, mark: Mark, tensor: Any) -> None:
        """It is behind it already."""

    def wait(self, mark: Mark) -> None:
        """It is done."""

    def drain(self) -> None:
        """It is done."""


@final
class Streams(Lanes):
    """Streams of torch.

    Parameters:
        module: `torch.cuda` or `torch.xpu`.
        device: as torch names it.
    """

    waits = True

    def __init__(self, module: Any, device: str) -> None:
        self._module = module
        self._streams: dict[Lane, Any] = {lane: module.Stream(device=device) for lane in ("up", "work", "down")}

    def at(self, lane: Lane) -> AbstractContextManager[Any]:
        """The stream is the current one of this thread."""
        found: AbstractContextManager[Any] = self._module.stream(self._streams[lane])
        return found

    def mark(self, lane: Lane) -> Mark:
        """An event of the stream."""
        event = self._module.Event()
        event.record(self._streams[lane])
        return event

    def follow(self, lane: Lane, mark: Mark, tensor: Any) -> None:
        """The stream waits, not the host."""
        self._streams[lane].wait_event(mark)
        tensor.record_stream(self._streams[lane])

    def wait(self, mark: Mark) -> None:
        """The only place where a merge waits for its device."""
        mark.synchronize()

    def drain(self) -> None:
        """All three."""
        for stream in self._streams.values():
            stream.synchronize()


def lanes_of(device: str) -> Lanes:
    """The lanes of one more worker on a device.

    Parameters:
        device: as torch names it.
    """
    import torch

    kind = device.partition(":")[0]
    return Streams(getattr(torch, kind), device) if kind in ("cuda", "xpu") else NoLanes()
