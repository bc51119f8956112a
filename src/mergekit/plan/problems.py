"""Everything that stands in the way of a merge, collected so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

from mergekit.errors import Findings, MergekitError, Problem, RecipeError


@final
class SeveralProblemsError(MergekitError):
    """Problems of several kinds; the exit code is that of the first.

    Parameters:
        errors: one for each kind, the first in the order of work first.
    """

    def __init__(self, errors: Sequence[MergekitError]) -> None:
        self.errors = tuple(errors)
        self.problems = tuple(problem for error in errors for problem in problems_of(error))
        self.exit_code = errors[0].exit_code
        text = "\n\n".join(str(problem) for problem in self.problems)
        Exception.__init__(self, f"{len(self.problems)} problems\n\n{text}")

    def __reduce__(self) -> tuple[type[SeveralProblemsError], tuple[tuple[MergekitError, ...]]]:
        """Other processes make it of its errors."""
        return type(self), (self.errors,)


def problems_of(error: MergekitError) -> tuple[Problem, ...]:
    """What an error is about, piece by piece."""
    if isinstance(error, RecipeError | SeveralProblemsError):
        return error.problems
    return (error.problem,)


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

    def raise_errors(self) -> None:
        """Raise what was found: an error as it is if it is alone, else :class:`SeveralProblemsError`."""
        if len(self.errors) > 1:
            raise SeveralProblemsError(self.errors)
        if self.errors:
            raise self.errors[0]
