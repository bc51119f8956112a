"""The method of a mixture: every output tensor is one operand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from mergekit.methods import Block, Method, Needs
from mergekit.methods.contract import Array, Stats


@final
@dataclass(frozen=True, kw_only=True)
class Mixture(Method):
    """Take each tensor from one model, or from memory, as it is."""

    name: ClassVar[str] = "moe"
    title: ClassVar[str] = "mixture of experts"
    reference: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs(base="ignored", least=1, most=1)

    def merge(self, block: Block, stats: Stats) -> Array:
        """The entries."""
        del stats
        return block.models[0]

    def untouched(self) -> int:
        """The one operand."""
        return 0
