"""What a tensor is before its bytes are read: name, dtype, shape and place."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
class Kind:
    """A kind of block in which GGUF packs entries.

    Parameters:
        name: ``Q4_K``; also ``F16``, whose blocks have one entry.
        entries: of one block.
        nbytes: size of one block in bytes.
    """

    name: str
    entries: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the entries of a tensor in a GGUF file come out of its bytes.

    Parameters:
        kind: of its blocks; a row is a whole number of them.
        heads: the rows are those of so many attention heads, whose two halves are interleaved: row 2 i + j of a head in
            the file is row j · n/2 + i of the n rows that Hugging Face has. 0 if the rows have their order.
        shift: is added to every entry.
    """

    kind: Kind
    heads: int = 0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor and where its bytes are.

    Parameters:
        spec: what it is; of quantised entries, the dtype that they stand for.
        extent: where it is, little-endian and in row-major order.
        blocks: how to unpack it; None if its bytes are its entries.
        strides: entries from one to the next along each dimension, none negative, for a tensor of a pickle that is not
            in row-major order; the extent then goes from its first entry to its last, with what is between them.
    """

    spec: TensorSpec
    extent: Extent
    blocks: Blocks | None = None
    strides: tuple[int, ...] | None = None


def span_of(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many entries there are from the first to the last of a tensor, both included.

    Example:
        >>> span_of((2, 3), (1, 10))
        22
    """
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
