"""Arrays of NumPy and of torch, and the bytes in them."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import DType, TensorSpec, dtype_titled
from mergekit.errors import UnsupportedError

Array = Any
"""An array of NumPy or a tensor of torch."""

Octets = NDArray[np.uint8]
"""Bytes of a tensor, little-endian and in row-major order."""


class Library(ABC):
    """A library of arrays."""

    @abstractmethod
    def title(self, array: Array) -> str:
        """Name of the dtype, as config.json has it."""

    def absence(self, array: Array) -> str | None:
        """Why not all entries of an array are in memory, in one clause; None if they are."""
        del array
        return None

    @abstractmethod
    def octets(self, array: Array) -> Octets:
        """The bytes of an array, without a copy where that is possible."""

    @abstractmethod
    def array(self, octets: Octets, dtype: DType, shape: tuple[int, ...]) -> Array:
        """An array of bytes, without a copy where that is possible."""

    @abstractmethod
    def beside(self, array: Array, other: Array) -> Array:
        """An array on the device of another one."""

    def spec(self, name: str, array: Array) -> TensorSpec:
        """What an array is.

        Raises:
            UnsupportedError: tensors of models do not have its dtype, or not all of its entries are in memory.
        """
        reason = self.absence(array)
        if reason:
            raise UnsupportedError(f"`{name}` {reason}", expected="a tensor with all its entries in memory")
        title = self.title(array)
        try:
            return TensorSpec(name, dtype_titled(title), tuple(array.shape))
        except ValueError as error:
            raise UnsupportedError(f"`{name}` is {title}, which cannot be merged") from error


@final
class NumpyArrays(Library):
    """Arrays of NumPy; dtypes that NumPy lacks come as others."""

    def title(self, array: Array) -> str:
        """NumPy's name; what other packages have added is called void."""
        return str(np.dtype(array.dtype.str).name)

    def octets(self, array: Array) -> Octets:
        """The memory of the array, if it is contiguous and little-endian."""
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
        return flat.view(np.uint8)

    def array(self, octets: Octets, dtype: DType, shape: tuple[int, ...]) -> Array:
        """Bfloat16 as float32, which is exact; other dtypes that NumPy lacks as uint8, packed ones without a shape."""
        if dtype.name == "BF16":
            return (octets.view("<u2").astype("<u4") << 16).view("<f4").reshape(shape)
        entries = octets.view(dtype.storage)
        return entries.reshape(shape) if dtype.bits >= 8 else entries

    def beside(self, array: Array, other: Array) -> Array:
        """The array itself."""
        del other
        return array


@final
class TorchTensors(Library):
    """Tensors of torch."""

    def title(self, array: Array) -> str:
        """Torch's name, without ``torch.``."""
        return str(array.dtype).removeprefix("torch.")

    def absence(self, array: Array) -> str | None:
        """Sparse tensors hold some of their entries, those on "meta" none."""
        import torch

        if array.is_meta:
            return "is on the device `meta`"
        return None if array.layout is torch.strided else f"has the layout {array.layout}"

    def octets(self, array: Array) -> Octets:
        """The memory of the tensor, if it is contiguous and on the CPU."""
        import torch

        flat = array.detach().cpu().contiguous().reshape(-1)
        found: Octets = flat.view(torch.uint8).numpy()
        return found

    def array(self, octets: Octets, dtype: DType, shape: tuple[int, ...]) -> Array:
        """A tensor on the CPU; packed entries without a shape."""
        import torch

        if dtype.bits < 8:
            return torch.from_numpy(octets)
        entries = torch.from_numpy(octets.view(f"<i{dtype.bits // 8}"))  # of the same size: views of none are refused
        return entries.view(getattr(torch, dtype.title)).reshape(shape)

    def beside(self, array: Array, other: Array) -> Array:
        """The tensor on the other one's device."""
        return array.to(other.device)


def library_named(name: str) -> Library:
    """The library with this name.

    Raises:
        ValueError: it is neither "numpy" nor "torch".
    """
    if name not in ("numpy", "torch"):
        raise ValueError(f"unknown framework {name!r}: expected 'numpy' or 'torch'")
    return NumpyArrays() if name == "numpy" else TorchTensors()


def library_of(arrays: Iterable[Array]) -> Library:
    """The library that all these arrays are of.

    Raises:
        TypeError: they are of both, or something else.
    """
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    found: dict[type[Library], None] = {}
    for array in arrays:
        if isinstance(array, np.ndarray | np.generic):
            found[NumpyArrays] = None
        elif torch is not None and isinstance(array, torch.Tensor):
            found[TorchTensors] = None
        else:
            raise TypeError(f"a `{type(array).__name__}` is neither a NumPy array nor a torch tensor")
    if len(found) > 1:
        raise TypeError("NumPy arrays and torch tensors cannot be merged with each other")
    return next(iter(found), NumpyArrays)()
