"""Rows that others are compared with, block by block, on the CPU or on a device.

Public: :class:`Atoms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.surgery.matrices import Raw, Rows, Store, spans

_BLOCK = 32 << 20  # bytes of atoms that are multiplied at a time
_MOST = 8192  # atoms that are multiplied at a time
_WIDE = 4  # bytes of a float32


@final
@dataclass(frozen=True, slots=True, eq=False)
class Atoms:
    """Rows, of which large products are taken in float32 and everything else in float64.

    Parameters:
        rows: float32, shape (n, width).
        device: as torch names it; None for NumPy.
        center: what is taken off each row, float64, shape (width,).
    """

    rows: Store
    device: str | None = None
    center: NDArray[Any] | float = 0.0
    _blocks: dict[int, Any] = field(default_factory=dict, repr=False)  # of the device, which holds them all

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.rows.shape[0])

    @property
    def width(self) -> int:
        """Entries of each."""
        return int(self.rows.shape[1])

    def take(self, numbers: Rows) -> NDArray[Any]:
        """Some of them in float64, shape (n, width)."""
        taken: NDArray[Any] = self.rows[numbers].astype(np.float64) - self.center
        return taken

    def products(self, targets: NDArray[Any]) -> Iterator[tuple[slice, Raw]]:
        """The dot products of targets with all atoms, block by block: float32, shape (m, atoms of the block)."""
        wide = self._placed(targets.astype(np.float32))
        for span in self._spans():
            scores = wide @ self._block(span).T
            yield span, scores if self.device is None else scores.cpu().numpy()

    def strongest(self, residuals: NDArray[Any], used: Rows) -> Rows:
        """For each row the unused atom with the largest product by magnitude, of equals the first.

        Parameters:
            residuals: shape (m, width).
            used: the atoms that each row has already, shape (m, s).
        """
        wide = self._placed(residuals.astype(np.float32))
        best = np.full(residuals.shape[0], -1.0, np.float32)
        found = np.zeros(residuals.shape[0], np.int64)
        for span in self._spans():
            scores = abs(wide @ self._block(span).T)
            rows, columns = np.nonzero((used >= span.start) & (used < span.stop))
            scores[self._index(rows), self._index(used[rows, columns] - span.start)] = -1.0
            place = scores.argmax(1)
            highest, place = self._fetched(scores[self._index(np.arange(place.shape[0])), place], place)
            better = highest > best
            best[better], found[better] = highest[better], place[better] + span.start
        return found

    def _spans(self) -> Iterator[slice]:
        return spans(self.count, min(_MOST, _BLOCK // (_WIDE * self.width)))

    def _block(self, span: slice) -> Any:
        if self.device is None:
            return self._centered(span)
        if span.start not in self._blocks:
            self._blocks[span.start] = self._placed(np.ascontiguousarray(self._centered(span)))
        return self._blocks[span.start]

    def _centered(self, span: slice) -> Raw:
        rows: Raw = self.rows[span]
        return rows if isinstance(self.center, float) else (rows - self.center).astype(np.float32)

    def _placed(self, rows: Raw) -> Any:
        """Rows where they are multiplied."""
        if self.device is None:
            return rows
        import torch

        return torch.from_numpy(rows).to(self.device)

    def _index(self, numbers: Rows) -> Any:
        return self._placed(np.ascontiguousarray(numbers))

    def _fetched(self, *found: Any) -> tuple[Raw, ...]:
        return found if self.device is None else tuple(each.cpu().numpy() for each in found)
