"""NearSwap: towards a model where it is near the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods.contract import Array, Block, Method, Needs, Raw, Stats, parameter

_LEAST = 1e-6  # distance that smaller ones are taken for


@final
@dataclass(frozen=True, kw_only=True)
class NearSwap(Method):
    """Take over the entries of a model that are near the base, and move the others towards it by a fixed distance.

    ``y = g · x + (1−g) · b`` with ``g = min(1, t / max(|x − b|, 1e-6))``: entries nearer than t become those of the
    model, entries farther away move by t.

    Parameters:
        t: distance, in the unit of the weights; 0 gives the base.

    Shapes: any. Passes: one. Deterministic. Differs from the peer: float32 instead of the checkpoint's dtype.

    Reference: alchemonaut 2024, "QuartetAnemoi-70B-t0.0001", model card, "NearSwap algorithm".

    Example:
        >>> import numpy as np
        >>> from mergekit.kernels import arrays
        >>> from mergekit.methods import Target
        >>> rows = np.array([[0.0, 0.0], [0.25, 2.0]], np.float32)  # the base and the model
        >>> NearSwap(t=0.5).merge(Block(rows, True, 0, arrays, Target("w", (2,))), {})
        array([0.25, 0.5 ], dtype=float32)
    """

    name: ClassVar[str] = "nearswap"
    title: ClassVar[str] = "NearSwap"
    reference: ClassVar[str] = "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    needs: ClassVar[Needs] = Needs(base="required", least=1, most=1)

    t: float = parameter(low=0, doc="distance by which entries move towards the model")

    def merge(self, block: Block, stats: Stats) -> Array:
        """The formula; the model's own entries where g is 1, which needs no rounding."""
        from array_api_compat import array_namespace

        del stats
        xp = array_namespace(block.rows)
        delta = block.deltas[0]
        distance = xp.abs(delta)
        share = self.t / xp.where(distance < _LEAST, xp.full_like(distance, _LEAST), distance)
        return xp.where(share >= 1, block.models[0], block.base + share * delta)

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """The same in one pass."""
        from mergekit.kernels.fused import approach

        del stats
        approach(block.base, block.models[0], self.t, out)
