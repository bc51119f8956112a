"""Where the mathematics runs: fused kernels on the CPU, or the same lines on torch tensors on any device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.errors import DeviceError
from mergekit.methods import Block, Method
from mergekit.methods.contract import Stats, Target

Raw = NDArray[Any]


class Compute(ABC):
    """Turns raw rows into blocks, and blocks into raw output."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What computes."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Its software: the same name and version, the same bytes."""

    @abstractmethod
    def block(self, rows: Raw, based: bool, start: int, target: Target) -> Block:
        """A block of raw rows, shape (k, n), whose first entry has index `start` in the target."""

    @abstractmethod
    def merge(self, method: Method, block: Block, stats: Stats, out: Raw) -> None:
        """Write the merged entries of a block into `out`."""


@final
class Fused(Compute):
    """Kernels on the CPU."""

    @property
    def name(self) -> str:
        """The same on every machine."""
        return "kernels"

    @property
    def version(self) -> str:
        """That of the kernels, for this processor."""
        from mergekit.kernels.compiled import fingerprint

        return fingerprint()

    def block(self, rows: Raw, based: bool, start: int, target: Target) -> Block:
        """The rows as they are."""
        from mergekit.kernels import fused

        return Block(rows, based, start, fused, target)

    def merge(self, method: Method, block: Block, stats: Stats, out: Raw) -> None:
        """The method's kernel."""
        method.fuse(block, stats, out)


@final
@dataclass(frozen=True, slots=True)
class Torch(Compute):
    """Float32 tensors of torch on a device.

    Parameters:
        device: as torch names it.
    """

    device: str

    @property
    def name(self) -> str:
        """The device's."""
        return f"torch {self.device}"

    @property
    def version(self) -> str:
        """That of torch."""
        import torch

        return str(torch.__version__)

    def _tensor(self, rows: Raw) -> Any:
        import torch

        wanted = {"u": torch.bfloat16, "i": torch.float16}.get(rows.dtype.kind)
        if wanted is None:
            return torch.from_numpy(rows).to(self.device)
        # The transfer moves 16 bits an entry; the device widens them.
        return torch.from_numpy(rows.view(np.int16)).view(wanted).to(self.device).to(torch.float32)

    def block(self, rows: Raw, based: bool, start: int, target: Target) -> Block:
        """The rows as float32 on the device."""
        from mergekit.kernels import arrays

        return Block(self._tensor(rows), based, start, arrays, target)

    def merge(self, method: Method, block: Block, stats: Stats, out: Raw) -> None:
        """The method's `merge`, rounded on the device."""
        import torch

        merged = method.merge(block, stats)
        wanted = {"u": torch.bfloat16, "i": torch.float16}.get(out.dtype.kind)
        if wanted is None:
            out[:] = merged.cpu().numpy()
        else:
            out[:] = merged.to(wanted).cpu().view(torch.int16).numpy().view(out.dtype)


def open_device(name: str | None) -> Compute:
    """The compute for a device as users name it.

    Parameters:
        name: None for kernels on the CPU; "cpu" for torch on the CPU; "cuda", "cuda:1", "mps", "xpu"; "auto" for the
            first accelerator there is, else kernels on the CPU.

    Raises:
        DeviceError: torch or the device is not there.
    """
    if name is None:
        return Fused()
    try:
        import torch
    except ImportError as error:
        raise DeviceError(f"device `{name}` needs torch", hint="pip install 'mergekit[torch]'") from error
    found = _accelerator(torch)
    if name == "auto":
        return Torch(found) if found else Fused()
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps", "xpu"):
        raise DeviceError(f"unknown device `{name}`", expected="cpu, cuda, cuda:N, mps, xpu or auto")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = f"this machine has `{found}`" if found else "this machine has no accelerator that torch can use"
        hint = "the CPU: no `--device` or `--cuda`, or `device=None` in Python"
        raise DeviceError(f"device `{name}` is not there: {there}", hint=hint) from error
    return Torch(name)


def _accelerator(torch: Any) -> str | None:
    if torch.cuda.is_available():
        return "cuda"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu"
    return "mps" if torch.backends.mps.is_available() else None
