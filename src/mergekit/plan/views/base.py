"""What a merge may ask of an operand, however its bytes lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Extent, TensorSpec
from mergekit.checkpoint.reading import Buffer
from mergekit.kernels import RAW

Raw = NDArray[Any]
_T = TypeVar("_T")


class Access(Protocol):
    """What a view reads with: files, and room to work in."""

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size; all in bytes."""

    def buffer(self, use: str, nbytes: int) -> Raw:
        """Uninitialised bytes, the same ones for the same use until it is asked for again."""

    def kept(self, view: View, make: Callable[[], _T]) -> _T:
        """What a view needs for every stretch: made once, kept while the tensor is being worked on."""


class View(ABC):
    """A tensor as a merge sees it: stored as it is, or computed from what is stored.

    Attributes:
        spec: name of the first stored tensor, dtype and shape as the merge sees them.
        names: the stored tensors it is made of.
    """

    spec: TensorSpec
    names: tuple[str, ...]

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are read for the whole tensor."""

    @abstractmethod
    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """What is read for the entries [start, stop)."""

    @abstractmethod
    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """Fill `into` with the entries [start, stop): raw ones if it has the dtype of `row_format`, else float32."""

    @property
    def row_format(self) -> str:
        """The format in which kernels take its entries; F32 if they are computed."""
        return "F32"

    @property
    def plain(self) -> Extent | None:
        """Where its entries lie one after the other in their `row_format`, if they do."""
        return None

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept while the tensor is being worked on, and of room beside the stretch that is asked for."""
        return 0

    def gather(self, access: Access, starts: Sequence[int], places: Sequence[int], count: int, into: Raw) -> None:
        """Fill parts of `into` with as many stretches of `count` entries, as `read` does; all in entries."""
        for start, place in zip(starts, places, strict=True):
            self.read(access, start, start + count, into[place : place + count])

    def rows(self, count: int) -> View:
        """The first `count` rows."""
        spec = TensorSpec(self.spec.name, self.spec.dtype, (count, *self.spec.shape[1:]))
        return Stretch(self, 0, spec, self.names)

    @property
    def files(self) -> tuple[str, ...]:
        """Where it is stored, for messages."""
        return tuple(dict.fromkeys(str(extent.file) for extent in self.extents(0, self.spec.count)))


class Composed(View, ABC):
    """Several views as one: it costs what they cost."""

    views: tuple[View, ...]

    @property
    def nbytes(self) -> int:
        """What all of them read."""
        return sum(view.nbytes for view in self.views)

    @property
    def kept_bytes(self) -> int:
        """What all of them keep."""
        return sum(view.kept_bytes for view in self.views)


class Excerpt(View, ABC):
    """Entries of another view, the whole: they cost their share of it."""

    view: View

    @property
    def nbytes(self) -> int:
        """Its share of what the whole reads."""
        return self.view.nbytes * self.spec.count // max(1, self.view.spec.count)

    @property
    def kept_bytes(self) -> int:
        """Those of the whole."""
        return self.view.kept_bytes

    @property
    def row_format(self) -> str:
        """That of the whole."""
        return self.view.row_format


@final
@dataclass(frozen=True, slots=True, eq=False)
class Stretch(Excerpt):
    """Consecutive entries of a view.

    Parameters:
        view: the whole.
        first: the entry of the whole that it begins with.
        spec: what it is.
        names: the stored tensors.
    """

    view: View
    first: int
    spec: TensorSpec
    names: tuple[str, ...]

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Those of the whole."""
        return self.view.extents(self.first + start, self.first + stop)

    @property
    def plain(self) -> Extent | None:
        """Its part of that of the whole."""
        whole = self.view.plain
        return whole and next(self.extents(0, self.spec.count), None)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """As from the whole."""
        self.view.read(access, self.first + start, self.first + stop, into)


class StoredView(View, ABC):
    """A view whose entries are stored as they are seen, so that their bytes can be copied."""

    @abstractmethod
    def read_bytes(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """Fill uint8 `into` with the bytes of the entries [start, stop)."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.spec.nbytes

    @property
    def row_format(self) -> str:
        """The format of the entries, if kernels can read it."""
        return self.spec.dtype.name if self.spec.dtype.name in RAW else "F32"

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """The bytes, widened where other entries are asked for."""
        dtype = self.spec.dtype
        if dtype.name in RAW and into.dtype == np.dtype(RAW[dtype.name]):
            self.read_bytes(access, start, stop, into.view(np.uint8))
        else:
            octets = access.buffer("stored", (stop - start) * dtype.bits // 8)
            self.read_bytes(access, start, stop, octets)
            _widen(octets, dtype.name, into)


def _widen(octets: Raw, name: str, row: Raw) -> None:
    from mergekit.kernels.fused import widen

    if name in RAW:
        widen(octets.view(RAW[name]), row)
    else:
        with np.errstate(over="ignore"):  # what does not fit is infinite, and found in the output
            row[:] = octets.view("<f8")
