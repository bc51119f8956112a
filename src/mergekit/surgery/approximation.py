"""What a method to approximate rows is: it learns from tokens that both models have.

Public: :class:`Approximation`, :class:`Site`, :class:`Targets`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from numpy.typing import NDArray

from mergekit.surgery.matrices import Anchors, Matrix, Raw, Rows
from mergekit.surgery.settings import Settings

Role = Literal["embedding", "head"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A matrix of the output, and what is known about it.

    Parameters:
        name: of the tensor.
        role: what it is for.
        donor: the donor's matrix for the same purpose.
        model: the model's matrix.
        anchors: the tokens that both have.
        settings: what was chosen.
        pieces: from a token of the donor to the tokens of the model that its text is cut into.
        configs: config.json of donor and model.
        device: where large products are taken, as torch names it; None for NumPy.
    """

    name: str
    role: Role
    donor: Matrix
    model: Matrix
    anchors: Anchors
    settings: Settings
    pieces: Callable[[int], tuple[int, ...]]
    configs: tuple[Mapping[str, Any], Mapping[str, Any]]
    device: str | None = None


@final
@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Tokens that are to get rows.

    Parameters:
        tokens: their ids in the donor, shape (m,).
        rows: the donor's rows, float32, shape (m, width of the donor); of a blind method it may be empty.
    """

    tokens: Rows
    rows: Raw


class Approximation(ABC):
    """A method that has learned all that it needs from a site.

    Attributes:
        blind: whether it looks neither at the donor's rows nor at tokens that both models have.
        summary: one line.
    """

    blind: ClassVar[bool] = False
    summary: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, site: Site) -> Approximation:
        """Learn."""

    @abstractmethod
    def approximate(self, targets: Targets) -> NDArray[Any]:
        """A row of the model for each target, shape (m, width of the model)."""

    def entries(self) -> int:
        """Float64 entries that are held for each target at a time."""
        return 1
