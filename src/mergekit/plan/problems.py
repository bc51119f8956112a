"""Everything that stands in the way of a merge, collected so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

from mergekit.errors import Findings, MergekitError, RecipeError, SeveralProblemsError


@final
@dataclass(slots=True)
class Problems:
    """Errors that were found so far, without an end to the search.

    Parameters:
        findings: mistakes, warnings and notices about the recipe.
        strict: warnings are mistakes.
        refusals: errors about models, memory, devices and the output.

    Example:
        >>> problems = Problems(Findings())
        >>> with problems.collected():
        ...     raise MergekitError("this does not work")
        >>> problems.findings.error("and this is a mistake")
        >>> [type(error).__name__ for error in problems.errors]
        ['RecipeError', 'MergekitError']
    """

    findings: Findings
    strict: bool = False
    refusals: list[MergekitError] = field(default_factory=list)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep an error of the block, and go on behind it."""
        try:
            yield
        except MergekitError as error:
            self.refusals.append(error)

    @property
    def errors(self) -> tuple[MergekitError, ...]:
        """Everything that stands in the way, the recipe's mistakes first, as one error."""
        try:
            self.findings.raise_errors(self.strict)
        except RecipeError as error:
            return (error, *self.refusals)
        return tuple(self.refusals)

    @property
    def error(self) -> MergekitError | None:
        """All of that as one error: as it is if it is alone, else :class:`~mergekit.errors.SeveralProblemsError`."""
        found = self.errors
        return SeveralProblemsError(found) if len(found) > 1 else found[0] if found else None

    def raise_errors(self) -> None:
        """Raise what was found."""
        if (error := self.error) is not None:
            raise error
