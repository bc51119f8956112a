"""What merges that differ in little share: reductions of each tensor, and the direction that a scale goes along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import numpy as np

from mergekit.api.arrays import Octets
from mergekit.checkpoint import DTYPES
from mergekit.engine.local import Recall
from mergekit.kernels.streams import BITS
from mergekit.methods.contract import Array, Block, Method, Needs, Raw, Reduction, Stats
from mergekit.methods.delta_sum import DeltaSum
from mergekit.plan import Operand, TensorTask
from mergekit.plan.views import Held

Merge = Callable[[TensorTask], Octets]


@final
@dataclass(frozen=True, kw_only=True)
class Along(DeltaSum):
    """The base and a scaled direction, which is the only other operand: ``y = b + λ · d``.

    Its kernel is that of the merges whose direction it is, so that nothing is rounded otherwise.
    """

    name: ClassVar[str] = "along"
    title: ClassVar[str] = "Along a direction"
    reference: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs(base="required", most=1)
    elects: ClassVar[bool] = False

    def votes_of(self, block: Block, stats: Stats, model: int) -> Array:
        """The direction."""
        del stats
        return block.models[model]

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """The same in one pass."""
        from mergekit.kernels.fused import delta_sum

        settings = self.settings(block, stats, self.everything, np.array([1 << BITS]), noisy=False)
        delta_sum(block.base, block.models[0, :0], block.models, *settings, self.scale, out)


@final
@dataclass(frozen=True)
class Direction(Method):
    """What a method adds to the base, before it is scaled: float32.

    Parameters:
        whole: the method; its scale does not matter.
    """

    name: ClassVar[str] = "direction"
    title: ClassVar[str] = "Direction of a merge"
    reference: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs(base="required")

    whole: DeltaSum

    def grain(self, shape: tuple[int, ...]) -> int:
        """That of the method."""
        return self.whole.grain(shape)

    def reductions(self) -> tuple[Reduction, ...]:
        """Those of the method."""
        return self.whole.reductions()

    def reduced(self) -> Method:
        """As the method, with which it shares what they find."""
        return self.whole.reduced()

    def merge(self, block: Block, stats: Stats) -> Array:
        """The sum."""
        return self.whole.total(block, stats)

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """The same on top of nothing."""
        self.whole.fuse_onto(np.zeros_like(block.base), 1.0, block, stats, out)


@final
@dataclass(slots=True)
class Shared:
    """Merges tensors; what the last merge of a tensor found out is used again where it would be the same.

    Parameters:
        room: bytes for directions, which take 4 for each entry; 0 to keep none.
    """

    room: int = 0
    recall: Recall = field(default_factory=Recall)
    _directions: dict[str, tuple[TensorTask, Octets]] = field(default_factory=dict)

    def merged(self, task: TensorTask, merge: Merge) -> Octets:
        """The bytes of a merged tensor: the same as without anything shared.

        Parameters:
            task: the tensor.
            merge: does a task.
        """
        method = task.method
        if not isinstance(method, DeltaSum) or not method.adds_votes or task.identical or not self._fits(task):
            return merge(task)
        entries = self._direction(task, method, merge).view(np.float32)
        own = Along(
            weight=(1.0,), density=(1.0,), normalize=False, lambda_=method.scale, rescale=False, rescale_norm="l1"
        )
        along = Operand(task.operands[0].model, Held.of(task.out.name, entries))
        return merge(replace(task, method=own, operands=(task.operands[0], along)))

    def _direction(self, task: TensorTask, method: DeltaSum, merge: Merge) -> Octets:
        own = replace(task, method=Direction(replace(method, lambda_=1.0)), out=replace(task.out, dtype=DTYPES["F32"]))
        known, entries = self._directions.get(task.out.name, (None, None))
        if entries is None or known != own:
            entries = merge(own)
            self._directions[task.out.name] = own, entries
        return entries

    def _fits(self, task: TensorTask) -> bool:
        others = sum(entries.nbytes for name, (_, entries) in self._directions.items() if name != task.out.name)
        return others + 4 * task.out.count <= self.room
