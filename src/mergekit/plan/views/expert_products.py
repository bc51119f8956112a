"""Fused experts with an adapter on top: every matrix with a product of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from mergekit.plan.views.base import Access, Raw, View
from mergekit.plan.views.low_rank import Multiplied

_WIDE = 4  # bytes of a float32


@final
@dataclass(frozen=True, slots=True, eq=False)
class ManyLowRank(Multiplied):
    """Matrices plus products of thin ones: ``W[e] + scale · B[e] @ A[e]``, or their transposes.

    Parameters:
        base: W, shape (experts, out, in), or (experts, in, out) if `transposed`.
        a: shape (experts · rank, in): expert by expert.
        b: shape (out, rank · experts): of each inner dimension all experts.
        scale: factor of the products.
        transposed: whether W is stored with its inputs first.
    """

    base: View
    a: View
    b: View
    scale: float
    transposed: bool = False

    @property
    def kept_bytes(self) -> int:
        """The factors as float32, twice while they are put in order."""
        return self.base.kept_bytes + 3 * _WIDE * (self.a.spec.count + self.b.spec.count)

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """The base's entries with those of the products added, expert by expert."""
        from mergekit.kernels.fused import add_low_rank

        self.base.read(access, start, stop, into)
        lefts, rights = access.kept(self, lambda: self._factors(access))
        size = self.spec.count // max(1, self.spec.shape[0])
        for expert in range(start // max(1, size), -(-stop // max(1, size))):
            first, last = max(start, expert * size), min(stop, (expert + 1) * size)
            part = into[first - start : last - start]
            add_low_rank(part, first - expert * size, lefts[expert], rights[expert])

    def _factors(self, access: Access) -> tuple[Raw, Raw]:
        """The factors of all matrices as they are stored, the first ones with the scale in them."""
        experts = self.spec.shape[0]
        a, b = (np.empty(factor.spec.count, np.float32) for factor in (self.a, self.b))
        self.a.read(access, 0, a.size, a)
        self.b.read(access, 0, b.size, b)
        outer = np.moveaxis(b.reshape(self.b.spec.shape[0], -1, experts), 2, 0)
        inner = a.reshape(experts, -1, self.a.spec.shape[1])
        left, right = (inner.swapaxes(1, 2), outer.swapaxes(1, 2)) if self.transposed else (outer, inner)
        with np.errstate(over="ignore", invalid="ignore"):  # it is found in the output
            return np.ascontiguousarray(left) * np.float32(self.scale), np.ascontiguousarray(right)
