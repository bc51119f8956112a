"""Devices as users name them."""

from __future__ import annotations

from mergekit.engine.accelerator import Torch
from mergekit.engine.compute import Compute, Fused
from mergekit.engine.hardware import KINDS, accelerator, every, is_wide, kind_of, model_of
from mergekit.errors import DeviceError

KERNELS = "kernels"
EVERY = ":*"
"""At the end of the name of a kind: all devices of that kind."""

_EXPECTED = "kernels, cpu, cuda, cuda:N, mps, xpu or auto"
_HINT = "the CPU: no `--device` or `--cuda`, or `device=None` in Python"


def open_device(name: str | None, keeping: bool = False) -> Compute:
    """The compute for a device as users name it.

    Parameters:
        name: None or "kernels" for kernels on the CPU; "cpu" for torch on the CPU; "cuda", "cuda:1", "mps", "xpu";
            "auto" for the first accelerator there is, else kernels on the CPU; "cuda:*" or "auto:*" for all alike of
            that kind; several, separated by commas.
        keeping: whether operands stay on the device between the sweeps over a tensor.

    Raises:
        DeviceError: torch or a device is not there, or the devices are not alike.
    """
    if name is None or name == KERNELS:
        return Fused(("operands are kept on no device: compiled kernels on the CPU compute",) if keeping else ())
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise DeviceError(f"device `{name}` needs torch", hint="pip install 'mergekit[torch]'") from error
    if name.removesuffix(EVERY) == "auto":
        found = accelerator()
        if found is None:
            return Fused(("torch can use no accelerator here: compiled kernels on the CPU compute",))
        name = name.replace("auto", found)
    names = [part.strip() for part in name.split(",")]
    for each in names:
        _require(each.removesuffix(EVERY), name)
    return _several(names[0], keeping) if names[0].endswith(EVERY) and len(names) == 1 else _alike(names, keeping)


def _require(device: str, asked: str) -> None:
    import torch

    if kind_of(device) not in KINDS:
        raise DeviceError(f"unknown device `{device or asked}`", expected=_EXPECTED)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = accelerator()
        there = f"this machine has `{found}`" if found else "this machine has no accelerator that torch can use"
        raise DeviceError(f"device `{device}` is not there: {there}", hint=_HINT) from error


def _several(name: str, keeping: bool) -> Torch:
    """All devices of a kind that are as the first one: others may round sums in another way."""
    devices = every(name.removesuffix(EVERY))
    alike = tuple(device for device in devices if model_of(device) == model_of(devices[0]))
    others = (device for device in devices if device not in alike)
    left_out = tuple(f"`{device}` is left out: it is another model than `{devices[0]}`" for device in others)
    return Torch(alike, keeping, wide=is_wide(alike[0]), remarks=left_out)


def _alike(names: list[str], keeping: bool) -> Torch:
    if len({(kind_of(name), model_of(name)) for name in names}) > 1:
        listed = ", ".join(f"`{name}`{f' ({model_of(name)})' if model_of(name) else ''}" for name in names)
        raise DeviceError(
            f"the devices {listed} are not alike",
            expected="devices of one model, as others may round sums in another way",
            hint="one of them",
        )
    return Torch(tuple(names), keeping, wide=is_wide(names[0]))
