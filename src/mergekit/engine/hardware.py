"""What torch knows about the devices of this machine."""

from __future__ import annotations

from typing import Any

KINDS = ("cpu", "cuda", "mps", "xpu")


def kind_of(device: str) -> str:
    """The kind of a device.

    Example:
        >>> kind_of("cuda:1")
        'cuda'
    """
    return device.partition(":")[0]


def library_of(device: str) -> Any:
    """The module of torch for a device, such as `torch.cuda`."""
    import torch

    return getattr(torch, kind_of(device))


def accelerator() -> str | None:
    """The first kind of accelerator that torch can use."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu"
    return "mps" if torch.backends.mps.is_available() else None


def every(kind: str) -> tuple[str, ...]:
    """All devices of a kind."""
    if kind not in ("cuda", "xpu"):
        return (kind,)
    return tuple(f"{kind}:{index}" for index in range(library_of(kind).device_count()))


def model_of(device: str) -> str:
    """What a device is sold as; empty if nobody knows."""
    library = library_of(device)
    return str(library.get_device_name(device)) if hasattr(library, "get_device_name") else ""


def free_memory(device: str) -> int:
    """Bytes that are free on a device; 0 if that cannot be known, or if it is the memory of the host."""
    import torch

    library = library_of(device)
    if hasattr(library, "mem_get_info"):
        index = torch.device(device).index
        return int(library.mem_get_info(library.current_device() if index is None else index)[0])
    if hasattr(library, "recommended_max_memory"):
        return max(0, int(library.recommended_max_memory()) - int(library.driver_allocated_memory()))
    return 0


def is_wide(device: str) -> bool:
    """Whether a device computes with float64."""
    import torch

    try:
        return float(torch.ones(2, dtype=torch.float64, device=device).sum()) == 2.0
    except (TypeError, RuntimeError):
        return False
