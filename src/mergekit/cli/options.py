"""Commands whose options stand under headings, and flags that are accepted without effect."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from mergekit.cli.output import print_failure, usage_failure

_F = TypeVar("_F", bound=Callable[..., Any])

GENERAL = "Script options"
NO_EFFECT = "Accepted, without effect"

EXIT_CODES = {
    0: "done",
    1: "a mistake in mergekit itself",
    2: "the command line is wrong",
    3: "the recipe is wrong",
    4: "a model cannot be read, or the models do not go together",
    5: "the output cannot be written",
    6: "the merge produced NaN or infinity",
    7: "the merge does not fit the memory it may use",
    8: "the device is not there",
    9: "a written model is not what its report says",
    10: "a merge method that did not come with mergekit failed",
    130: "interrupted",
}
"""What a command's exit code means."""

_IGNORED = "mergekit.ignored"  # in Context.meta: notices about flags without effect


class Option(click.Option):
    """An option under a heading of the help text.

    Parameters:
        heading: of the help text.
        bare: of an option that may stand alone, the value that it has then and what any other value looks like, so that
            an argument after it is not taken for one.
    """

    def __init__(
        self, *args: Any, heading: str = GENERAL, bare: tuple[str, str] | None = None, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.heading = heading
        self.bare = bare

    def joined(self, args: Sequence[str]) -> list[str]:
        """The words of a command line, this option and its value made one word if it may stand alone."""
        words, rest = [], list(args)
        while self.bare and rest and rest[0] != "--":
            word = rest.pop(0)
            if word in self.opts:
                value = rest.pop(0) if rest and re.fullmatch(self.bare[1], rest[0]) else self.bare[0]
                word = f"{word}={value}"
            words.append(word)
        return words + rest


class Command(click.Command):
    """A command that groups its options, explains its exit codes, and answers ``--json`` with JSON, right or wrong."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and report a wrong command line as JSON if that was asked for."""
        asked = "--json" in args
        for param in self.params:
            args = param.joined(args) if isinstance(param, Option) else args
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if not asked:
                raise
            print_failure(usage_failure(error))
            ctx.exit(error.exit_code)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if row is not None:
                sections.setdefault(getattr(param, "heading", GENERAL), []).append(row)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes."""
        write_exit_codes(formatter)


def write_exit_codes(formatter: click.HelpFormatter) -> None:
    """Write the table of exit codes."""
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


def option(heading: str, *declarations: str, **settings: Any) -> Callable[[_F], _F]:
    """Like ``click.option``, under a heading."""
    return click.option(*declarations, cls=Option, heading=heading, **settings)


def accepted(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Several options that commands have in common, in their order."""

    def decorate(command: _F) -> _F:
        for each in reversed(options):
            command = each(command)
        return command

    return decorate


def note_ignored(ctx: click.Context, param: click.Parameter, value: object) -> object:
    """Callback of a flag without effect: remember that it was given."""
    if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE:
        why = param.help if isinstance(param, click.Option) else ""
        ctx.meta.setdefault(_IGNORED, []).append(f"`{param.opts[0]}` has no effect: {why}")
    return value


def ignored(*declarations: str, why: str, **settings: Any) -> Callable[[_F], _F]:
    """An option that other mergers have and that means nothing here.

    Parameters:
        declarations: as for ``click.option``.
        why: half a line.
        settings: as for ``click.option``.
    """
    return option(NO_EFFECT, *declarations, help=why, expose_value=False, callback=note_ignored, **settings)


def ignored_flags() -> list[str]:
    """A notice for each flag without effect that the command was given."""
    return list(click.get_current_context().meta.get(_IGNORED, ()))
