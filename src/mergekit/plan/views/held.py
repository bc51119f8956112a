"""A tensor that is computed before the merge: its entries are part of the plan, not of a checkpoint.

They are in an array, or in anything else that gives stretches of them, such as a file that the one who plans has made:
a large tensor does not have to fit into memory. They may be written after the plan was made and before it is carried
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np

from mergekit.checkpoint import DTYPES, Extent, TensorSpec
from mergekit.plan.views.base import Access, Raw, View


class Values(Protocol):
    """Float32 entries, flat; an array, or whatever gives stretches of them."""

    def __getitem__(self, span: slice) -> Raw:
        """The entries [start, stop)."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Held(View):
    """A tensor whose entries are held.

    Parameters:
        spec: name, dtype and shape.
        values: float32, flat.
        names: stored tensors that stand for it in reports.

    Example:
        >>> view = Held.of("router", np.eye(2, dtype=np.float32))
        >>> out = np.empty(2, np.float32)
        >>> view.read(None, 1, 3, out)
        >>> out.tolist(), view.nbytes
        ([0.0, 0.0], 0)
    """

    spec: TensorSpec
    values: Values
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, values: Raw) -> Held:
        """An array of any shape; one of float32 that is contiguous stays the same array."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        return cls(TensorSpec(name, DTYPES["F32"], values.shape), flat)

    @property
    def nbytes(self) -> int:
        """Nothing is read."""
        return 0

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """None."""
        del start, stop
        yield from ()

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """The entries."""
        del access
        into[:] = self.values[start:stop]
