"""What a tensor is before its bytes are read: name, dtype, shape and place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mergekit.checkpoint.dtypes import DType


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a tensor.

    Parameters:
        name: its name in the checkpoint.
        dtype: its element type.
        shape: its dimensions in elements; empty for a scalar.

    Raises:
        ValueError: the elements of a packed dtype do not fill whole bytes.

    Example:
        >>> from mergekit.checkpoint.dtypes import DTYPES
        >>> TensorSpec("lm_head.weight", DTYPES["BF16"], (32000, 4096)).nbytes
        262144000
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype.bits * self.count % 8:
            raise ValueError(f"{self.count} elements of {self.dtype.name} do not fill whole bytes")

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.bits * self.count // 8


@dataclass(frozen=True, slots=True)
class Extent:
    """A byte range of a file.

    Parameters:
        file: the file.
        start: first byte, counted from the beginning of the file.
        stop: one past the last byte.
    """

    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor and where its bytes are.

    Parameters:
        spec: what it is.
        extent: where it is, little-endian and in row-major order.
    """

    spec: TensorSpec
    extent: Extent
