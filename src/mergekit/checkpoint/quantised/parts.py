"""The stored tensors of one quantised weight, and the checks that all formats share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekit.checkpoint.quantised.codes import Grid, Steps
from mergekit.checkpoint.quantised.numbers import FACTOR_DTYPES
from mergekit.checkpoint.quantised.settings import Settings
from mergekit.checkpoint.tensors import Stored, TensorSpec
from mergekit.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Parts:
    """The stored tensors of one weight.

    Parameters:
        name: of the weight.
        stored: by the endings of their names.
        main: ending of the one with the codes.
        settings: what config.json says.
    """

    name: str
    stored: Mapping[str, Stored]
    main: str
    settings: Settings

    @property
    def codes(self) -> Stored:
        """The tensor with the codes."""
        return self.stored[self.main]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return tuple(stored.spec.name for stored in self.stored.values())

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(stored.spec.nbytes for stored in self.stored.values())

    def spec(self, shape: Sequence[int]) -> TensorSpec:
        """The weight, of a shape."""
        return TensorSpec(self.name, self.settings.dtype, tuple(shape))

    def factors(self, ending: str) -> Stored:
        """The tensor with the scales.

        Raises:
            CheckpointError: it does not hold numbers.
        """
        stored = self.stored[ending]
        if stored.spec.dtype.name not in FACTOR_DTYPES:
            raise self.wrong(stored, "numbers as scales")
        return stored

    def check_shape(self, ending: str, shape: Sequence[int]) -> Stored:
        """A tensor, which must have a shape.

        Raises:
            CheckpointError: it has another one.
        """
        stored = self.stored[ending]
        if stored.spec.shape != tuple(shape):
            raise self.wrong(stored, f"shape {list(shape)}")
        return stored

    def wrong(self, stored: Stored, expected: str) -> CheckpointError:
        """The error that a tensor does not fit the others of its weight."""
        spec = stored.spec
        what = f"`{spec.name}`, {spec.dtype.title} of shape {list(spec.shape)}, does not fit the weight `{self.name}`"
        return CheckpointError(what, place=str(stored.extent.file), expected=expected)


def row_major(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of each matrix of a tensor; a vector is one row."""
    return (shape[-2] if len(shape) > 1 else 1, shape[-1] if shape else 1)


def grid_of(parts: Parts, shape: Sequence[int], scales: Stored) -> Grid:
    """Which scale an entry shares, read off the shapes of a weight and of its scales.

    One scale for all; one for each row; one for each matrix; or one for each block, whose size is what config.json
    says or what divides the weight evenly.

    Raises:
        CheckpointError: the shapes allow none of these.
    """
    own, (rows, columns) = scales.spec.shape, row_major(shape)
    if math.prod(own) == 1:
        return Grid(rows, columns, Steps(0, 0, 0))
    if len(shape) > 1 and own in (tuple(shape[:-1]), (*shape[:-1], 1)):
        return Grid(1, columns, Steps(rows, 1, 0))
    if len(shape) == 3 and math.prod(own) == own[0] == shape[0]:
        return Grid(rows, columns, Steps(1, 0, 0))
    if len(shape) > 1 and len(own) == len(shape) and own[:-2] == tuple(shape[:-2]) and min(own) > 0:
        even = (rows // own[-2], columns // own[-1])
        is_even = rows == even[0] * own[-2] and columns == even[1] * own[-1]
        # Settings speak of blocks; rows may be cut into groups of another size beside them.
        others = [even] if is_even and (even[0] == 1 or not parts.settings.blocks) else []
        for high, wide in (*parts.settings.blocks, *others):
            if own[-2:] == (-(-rows // high), -(-columns // wide)):
                return Grid(high, wide, Steps(own[-2] * own[-1], own[-1], 1))
    raise parts.wrong(scales, f"scales of a weight of shape {list(shape)}")
