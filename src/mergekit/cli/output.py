"""What commands print: results on stdout, remarks and errors on stderr; or one JSON object on stdout."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import click

from mergekit.errors import MergekitError, Place, Problem

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command ends without a result.

    Parameters:
        kind: the name of the exception.
        message: all of it, for people.
        exit_code: of the process.
        problems: what was found, piece by piece.
    """

    kind: str
    message: str
    exit_code: int
    problems: tuple[Problem, ...] = ()


def usage_failure(error: click.UsageError) -> Failure:
    """A wrong command line."""
    return Failure("UsageError", error.format_message(), error.exit_code)


def failure_of(error: BaseException) -> Failure:
    """What an exception means for a command."""
    kind = type(error).__name__
    if isinstance(error, MergekitError):
        several = getattr(error, "problems", None)
        return Failure(kind, str(error), error.exit_code, several or (error.problem,))
    if isinstance(error, KeyboardInterrupt):
        return Failure(kind, "; ".join(["interrupted", *map(str, error.args)]), INTERRUPTED)
    summary = (str(error).splitlines() or [""])[0]
    return Failure(kind, f"{kind}: {summary} (this is a bug in mergekit; `-v` shows where)", 1)


def print_failure(failure: Failure, more: Mapping[str, object] | None = None) -> None:
    """Print a failure as JSON, with whatever else is known."""
    error = {
        "type": failure.kind,
        "message": failure.message,
        "problems": [problem_record(problem) for problem in failure.problems],
    }
    print_json({"ok": False, "error": error, "exit_code": failure.exit_code, **(more or {})})


def problem_record(problem: Problem) -> dict[str, object]:
    """A problem for programs."""
    place = problem.place
    return {
        "what": problem.what,
        "place": str(place) if place is not None else None,
        "file": place.file if isinstance(place, Place) else None,
        "line": place.line if isinstance(place, Place) else None,
        "expected": problem.expected,
        "hint": problem.hint,
    }


def print_json(record: Mapping[str, object]) -> None:
    """Print one JSON object on stdout."""
    click.echo(json.dumps(record, allow_nan=False))


@dataclass(frozen=True, slots=True)
class Output:
    """How much a command says, and in which form.

    Parameters:
        as_json: one JSON object on stdout and nothing else.
        quiet: only warnings and errors.
        verbose: say what is planned, and where a bug is.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Let any exception of the block be a failure; a wrong command line is told by click, or in JSON."""
        try:
            yield
        except BrokenPipeError:
            raise  # click ends the process without a word
        except click.UsageError as error:
            if not self.as_json:
                raise
            self.fail(usage_failure(error))
        except (Exception, KeyboardInterrupt) as error:
            failure = failure_of(error)
            if self.verbose and failure.exit_code == 1:
                traceback.print_exception(error)
            self.fail(failure)

    def fail(self, failure: Failure, more: Mapping[str, object] | None = None) -> NoReturn:
        """Report a failure, in JSON with whatever else is known, and end the process with its exit code."""
        if self.as_json:
            print_failure(failure, more)
        else:
            prefix = "" if failure.exit_code == INTERRUPTED else "error: "
            click.echo(prefix + failure.message, err=True)
        sys.exit(failure.exit_code)

    @property
    def drawing(self) -> bool:
        """Whether somebody watches stderr and wants to."""
        return sys.stderr.isatty() and not self.quiet and not self.as_json

    def warn(self, problems: Iterable[Problem]) -> None:
        """Print warnings."""
        if not self.as_json:
            for problem in problems:
                click.echo(f"warning: {problem}", err=True)

    def note(self, texts: Iterable[str]) -> None:
        """Print what is good to know."""
        if not self.as_json and not self.quiet:
            for text in texts:
                click.echo(f"note: {text}", err=True)

    def finish(self, rows: Iterable[tuple[str, str]], record: Mapping[str, object]) -> None:
        """Print the result: rows for people, or a record for programs."""
        if self.as_json:
            print_json({"ok": True, **record})
        elif not self.quiet:
            rows = list(rows)
            width = max(len(label) for label, _ in rows)
            for label, text in rows:
                click.echo(f"{label:<{width}}  {text}")
