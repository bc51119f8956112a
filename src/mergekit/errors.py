"""Everything that can go wrong, one class per cause.

::

    MergekitError                 exit code 1
    ├── SeveralProblemsError      errors of several kinds at once; the exit code is that of the first
    ├── RecipeError               3   the recipe is wrong; carries every finding
    ├── CheckpointError           4   a model folder or file cannot be read as what it claims to be
    │   ├── HeaderError               a file's header lies about its contents
    │   ├── MissingModelError         no model where the recipe points
    │   └── MissingTensorError        a tensor that the merge needs is not there
    ├── IncompatibleModelsError   4   the models differ where they must agree
    ├── UnsupportedError          4   understood, and not something this version does
    ├── OutputError               5   the output folder cannot be written
    ├── NonFiniteError            6   the merge produced NaN or infinity
    ├── BudgetError               7   the merge does not fit the memory it may use
    ├── DeviceError               8   the requested device is not there
    ├── VerificationError         9   a written model is not what its report says
    └── MethodError               10  a merge method of somebody else's cannot be loaded, or fails

A message has up to four lines: what is wrong with the value; ``at`` where; ``expected`` what; ``try`` what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a document a value stands.

    Parameters:
        path: dotted path from the document's root, ``models[1].parameters.weight``; empty for the root.
        file: name of the file as the user gave it, or None for text without a file.
        line: line number, counted from 1, or None where it is not known.

    Example:
        >>> str(Place("models[1].model", "merge.yml", 9))
        'models[1].model (merge.yml:9)'
    """

    path: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        source = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        if not self.path:
            return source
        return f"{self.path} ({source})" if source else self.path


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: what is wrong, where, what was expected and what to try.

    Example:
        >>> print(Problem("unknown key `wieght`", Place("models[1].parameters.wieght", "m.yml", 9), hint="`weight`"))
        unknown key `wieght`
          at models[1].parameters.wieght (m.yml:9)
          try `weight`
    """

    what: str
    place: Place | str | None = None
    expected: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        lines = [self.what]
        for label, text in (("at", self.place), ("expected", self.expected), ("try", self.hint)):
            if text is not None and str(text):
                lines.append(f"  {label} {text}")
        return "\n".join(lines)


def _line(problem: Problem) -> float:
    """The line of a problem's place; problems without one come last."""
    line = problem.place.line if isinstance(problem.place, Place) else None
    return float("inf") if line is None else line


@dataclass(slots=True)
class Findings:
    """Collects errors, warnings and notices, so that all of them can be reported at once.

    A warning or notice is kept once per text: recipes repeat the same leftover under every model.
    """

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def error(
        self, what: str, place: Place | str | None = None, expected: str | None = None, hint: str | None = None
    ) -> None:
        """Record something that makes the recipe unusable."""
        problem = Problem(what, place, expected, hint)
        if problem not in self.errors:
            self.errors.append(problem)

    def warn(
        self, what: str, place: Place | str | None = None, expected: str | None = None, hint: str | None = None
    ) -> None:
        """Record something that has no effect, once per text."""
        if all(known.what != what for known in self.warnings):
            self.warnings.append(Problem(what, place, expected, hint))

    def notice(self, text: str) -> None:
        """Record a choice made for the user, once per text."""
        if text not in self.notices:
            self.notices.append(text)

    def extend(self, other: Findings) -> None:
        """Take over everything that another collection holds."""
        for problem in other.errors:
            self.error(problem.what, problem.place, problem.expected, problem.hint)
        for problem in other.warnings:
            self.warn(problem.what, problem.place, problem.expected, problem.hint)
        for text in other.notices:
            self.notice(text)

    def raise_errors(self, strict: bool = False) -> None:
        """Raise :class:`RecipeError` with all errors, and with all warnings too if `strict`, in the recipe's order."""
        problems = self.errors + (self.warnings if strict else [])
        if problems:
            raise RecipeError(sorted(problems, key=_line))


class MergekitError(Exception):
    """Base of all errors that mergekit raises on purpose; `problems` holds what it is about, piece by piece."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        place: Place | str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem = Problem(what, place, expected, hint)
        self.problems: tuple[Problem, ...] = (self.problem,)
        super().__init__(str(self.problem))


class RecipeError(MergekitError):
    """The recipe has mistakes; `problems` holds every one of them."""

    exit_code = 3

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = "" if count == 1 else f"{count} problems in the recipe\n\n"
        Exception.__init__(self, title + "\n\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[tuple[Problem, ...]]]:
        """Other processes make it of its problems."""
        return type(self), (self.problems,)


class SeveralProblemsError(MergekitError):
    """Problems of several kinds; the exit code is that of the first.

    Parameters:
        errors: one for each kind, the first in the order of work first.
    """

    def __init__(self, errors: Sequence[MergekitError]) -> None:
        self.errors = tuple(errors)
        self.problems = tuple(problem for error in errors for problem in error.problems)
        self.exit_code = errors[0].exit_code
        text = "\n\n".join(str(problem) for problem in self.problems)
        Exception.__init__(self, f"{len(self.problems)} problems\n\n{text}")

    def __reduce__(self) -> tuple[type[SeveralProblemsError], tuple[tuple[MergekitError, ...]]]:
        """Other processes make it of its errors."""
        return type(self), (self.errors,)


class CheckpointError(MergekitError):
    """A model folder or file cannot be read as what it claims to be."""

    exit_code = 4


class HeaderError(CheckpointError):
    """A file's header contradicts itself or the file."""


class MissingModelError(CheckpointError):
    """There is no model where the recipe points."""


class MissingTensorError(CheckpointError):
    """A tensor that the merge needs is not in the checkpoint."""


class IncompatibleModelsError(MergekitError):
    """The models differ where they must agree."""

    exit_code = 4


class UnsupportedError(MergekitError):
    """The request is understood, and this version cannot do it."""

    exit_code = 4


class OutputError(MergekitError):
    """The output folder cannot be written."""

    exit_code = 5


class NonFiniteError(MergekitError):
    """The merge produced NaN or infinity."""

    exit_code = 6


class BudgetError(MergekitError):
    """The merge does not fit into the memory it may use."""

    exit_code = 7


class DeviceError(MergekitError):
    """The requested device is not there."""

    exit_code = 8


class VerificationError(MergekitError):
    """A written model is not what its report says."""

    exit_code = 9


class MethodError(MergekitError):
    """A merge method that did not come with mergekit cannot be loaded, or fails."""

    exit_code = 10
