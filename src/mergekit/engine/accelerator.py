"""Float32 tensors of torch on a device, or on several of one kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import numpy as np

from mergekit.engine.compute import Compute, Fused, Raw, Workbench
from mergekit.engine.hardware import free_memory, kind_of, library_of, model_of
from mergekit.engine.lanes import Lanes, Mark, lanes_of
from mergekit.methods import Block, Method
from mergekit.methods.contract import Array, Stats, Target

_SHARE = 2  # of the free memory, one part in so many keeps operands
_NO_DOUBLE = ("float64", "fp64", "double")  # what devices without it say when they are asked for it


@final
@dataclass(frozen=True, slots=True)
class Torch(Compute):
    """Torch on devices that give the same bytes.

    Parameters:
        devices: as torch names them; one may be there more than once.
        keeping: whether operands stay on the device between the sweeps over a tensor, as far as there is room.
        budget: bytes that each device may keep; None for half of what is free there.
        wide: whether there are numbers of float64; if not, sums are taken by the kernels, on the CPU.
        lanes: makes the lanes of one more worker on a device.
        remarks: what a user should know about the choice.
    """

    devices: tuple[str, ...]
    keeping: bool = False
    budget: int | None = None
    wide: bool = True
    lanes: Callable[[str], Lanes] = lanes_of
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The kind of the devices."""
        return f"torch {kind_of(self.devices[0])}"

    @property
    def version(self) -> str:
        """That of torch, and what the devices are."""
        import torch

        return " ".join(filter(None, (str(torch.__version__), model_of(self.devices[0]))))

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know about the choice."""
        return self.remarks

    def seats(self, workers: int) -> Sequence[Compute]:
        """The devices in turn: equally many workers on each, and several wherever there are enough."""
        count = len(self.devices)
        seats = max(workers // count * count, min(workers, count))
        each = max(1, seats // count)
        shares = {name: self._room(name) // (each * self.devices.count(name)) for name in set(self.devices)}
        names = [self.devices[seat % count] for seat in range(seats)]
        return [replace(self, devices=(name,), budget=shares[name]) for name in names]

    def _room(self, device: str) -> int:
        if not self.keeping:
            return 0
        return free_memory(device) // _SHARE if self.budget is None else self.budget * self.devices.count(device)

    def bench(self) -> Workbench:
        """On the first device."""
        import torch

        device = self.devices[0]
        threads = torch.get_num_threads() if kind_of(device) == "cpu" else None
        return _TorchWorkbench(device, self.lanes(device), self._room(device), self.wide, threads)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Rows on a device, as they are stored, once the lane of copies has passed the mark."""

    tensor: Any
    mark: Mark


@final
@dataclass(slots=True)
class _TorchWorkbench(Workbench):
    """One worker's lanes on a device, and what it keeps there."""

    device: str
    lanes: Lanes
    budget: int
    wide: bool = True
    threads: int | None = None  # that torch takes for one sum elsewhere in this process; None if the CPU does not sum
    depth: int = 2  # while one stripe is computed, another is read, and brought there
    _held: dict[tuple[int, int], _Loaded] = field(default_factory=dict)

    def room(self, nbytes: int) -> Raw:
        import torch

        if self.lanes.waits:
            with suppress(RuntimeError):  # pinned memory may be scarce; other memory is copied as well, but slower
                pinned: Raw = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
                return pinned
        return np.empty(nbytes, np.uint8)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with self.lanes.at("work"), self._alone():
            try:
                yield
            except BaseException:
                self.lanes.drain()
                raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A worker is one thread: torch takes no others beside it, with which workers would wait for one another."""
        import torch

        if self.threads is None:
            yield
            return
        torch.get_num_threads()  # a new thread takes over what others have set when it first asks; not later, then
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    def load(self, rows: Raw) -> _Loaded:
        with self.lanes.at("up"):
            # The transfer moves entries as they are stored; the device widens them.
            tensor = _tensor(rows).to(self.device, non_blocking=self.lanes.waits, copy=True)
        return _Loaded(tensor, self.lanes.mark("up"))

    def block(self, loaded: _Loaded, based: bool, start: int, target: Target) -> Block:
        import torch

        from mergekit.kernels import arrays

        self.lanes.follow("work", loaded.mark, loaded.tensor)
        return Block(loaded.tensor.to(torch.float32), based, start, arrays, target)

    def merge(self, method: Method, block: Block, stats: Stats, out: Raw) -> Callable[[], None]:
        try:
            merged = method.merge(block, stats)
        except (TypeError, RuntimeError) as error:
            if self.wide or not any(word in str(error).lower() for word in _NO_DOUBLE):
                raise
            merged = _on_host(method, block, stats)
        into = _tensor(out)
        return self._back(merged.to(into.dtype), into)

    def _back(self, tensor: Any, into: Any) -> Callable[[], None]:
        self.lanes.follow("down", self.lanes.mark("work"), tensor)
        with self.lanes.at("down"):
            into.copy_(tensor, non_blocking=self.lanes.waits)  # without lanes nothing would wait for it
        return partial(self.lanes.wait, self.lanes.mark("down"))

    def landed(self, loaded: _Loaded) -> None:
        self.lanes.wait(loaded.mark)

    def keep(self, start: int, stop: int, loaded: _Loaded) -> None:
        nbytes = loaded.tensor.nbytes
        if nbytes <= self.budget - sum(other.tensor.nbytes for other in self._held.values()):
            self._held[start, stop] = loaded

    def kept(self, start: int, stop: int) -> _Loaded | None:
        return self._held.get((start, stop))

    def fetch(self, loaded: _Loaded, into: Raw) -> Callable[[], None]:
        return self._back(loaded.tensor[0], _tensor(into))

    def forget(self) -> None:
        self._held.clear()

    def release(self) -> None:
        self.forget()
        self.budget = 0
        library = library_of(self.device)
        if hasattr(library, "empty_cache"):
            library.empty_cache()

    def settle(self) -> None:
        self.lanes.drain()

    def for_sweeps(self) -> Workbench:
        return self if self.wide else Fused().bench()

    def is_full(self, error: Exception) -> bool:
        causes = [error, error.__cause__]  # a method that is not ours fails with an error of ours
        return any(isinstance(each, RuntimeError) and "out of memory" in str(each).lower() for each in causes)


def _tensor(entries: Raw) -> Any:
    """Raw entries of the host as a tensor of their dtype, in the same memory."""
    import torch

    dtype = {"u": torch.bfloat16, "i": torch.float16}.get(entries.dtype.kind)
    return torch.from_numpy(entries) if dtype is None else torch.from_numpy(entries.view(np.int16)).view(dtype)


def _on_host(method: Method, block: Block, stats: Stats) -> Array:
    """A block merged by the method's kernel, where the device lacks numbers that the method needs."""
    import torch

    from mergekit.kernels import fused
    from mergekit.kernels.arrays import host

    rows = np.ascontiguousarray(host(block.rows))
    out = np.empty(rows.shape[1], np.float32)
    method.fuse(Block(rows, block.based, block.start, fused, block.target), stats, out)
    return torch.from_numpy(out).to(block.rows.device)
