"""Weights that are stored as codes and factors, and read as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from mergekit.checkpoint import Extent, TensorSpec
from mergekit.checkpoint.quantised import Quantised
from mergekit.checkpoint.quantised.codes import Box
from mergekit.plan.views.base import Access, Raw, View

_ROOM = 4 << 20  # bytes of codes and factors of a window, at most


@final
@dataclass(frozen=True, slots=True)
class Dequantised(View):
    """A quantised weight.

    Parameters:
        weight: where its codes and factors are, and what they stand for.
        spec: its name and shape, and the dtype that it has when it is not quantised.
        names: the stored tensors.
    """

    weight: Quantised
    spec: TensorSpec
    names: tuple[str, ...]

    @classmethod
    def of(cls, weight: Quantised) -> Dequantised:
        """A weight by its own name."""
        return cls(weight, weight.spec, weight.names)

    @property
    def nbytes(self) -> int:
        """Size of all stored tensors."""
        return self.weight.nbytes

    @property
    def kept_bytes(self) -> int:
        """A window of codes, and their factors."""
        return _ROOM

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """Codes and factors, rectangle by rectangle."""
        weight = self.weight
        for box in weight.boxes(start, stop):
            yield weight.codes.bytes_of(box)
            for factors in (weight.scales, weight.zeros):
                if factors is not None:
                    yield from factors.extents(*weight.grid.window(box))

    def read(self, access: Access, start: int, stop: int, into: Raw) -> None:
        """Decode window by window: codes of neighbours may lie far apart, and only so many are held at a time."""
        for box in self.weight.windows(start, stop):
            self._decode(access, box, start, into)

    def _decode(self, access: Access, box: Box, start: int, into: Raw) -> None:
        from mergekit.kernels.fused import dequantise

        weight, codes, grid = self.weight, self.weight.codes, self.weight.grid
        extent, window = codes.bytes_of(box), grid.window(box)
        octets = access.buffer("codes", extent.nbytes)
        access.read(extent, octets)
        none = np.zeros(0, np.float32)
        scales = np.ones(1, np.float32) if weight.scales is None else weight.scales.values(access, *window)
        zeros = none if weight.zeros is None else weight.zeros.values(access, *window)
        rows, columns = weight.matrix
        place = (box.matrix * rows + box.top) * columns + box.left - start
        lines = np.array(
            [
                [box.top, box.bottom, codes.steps.row, columns, grid.rows, grid.steps.row],
                [box.left, box.right, codes.steps.column, 1, grid.columns, grid.steps.column],
            ]
        )
        across = lines if grid.columns >= grid.rows else lines[::-1].copy()
        bit, first = codes.window(box)[0] % 8, window[0] - grid.steps.at(box.matrix, 0, 0)
        kind = np.array([codes.bits, 4 * codes.high_first, bit, first, place])
        table = np.frombuffer(codes.table, np.float32)
        dequantise(octets, table, scales, zeros, weight.factor, kind, across, into)
