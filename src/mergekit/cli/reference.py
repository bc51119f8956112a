"""``python -m mergekit.cli.reference FILE`` brings the help texts in a page of the documentation up to date."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from mergekit.cli.main import COMMANDS, commands
from mergekit.cli.merge import merge

WIDTH = 100
_BLOCK = re.compile(r"(<!-- help: (?P<command>.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def help_text(command: str) -> str:
    """What a command answers to ``--help`` on a terminal of 100 columns.

    Parameters:
        command: `mergekit`, `mergekit NAME` or `mergekit-yaml`.
    """
    words = command.split()
    shown: click.Command = merge if words[0] == "mergekit-yaml" else commands
    context = click.Context(shown, info_name=words[0], max_content_width=WIDTH, terminal_width=WIDTH)
    for name in words[1:]:
        inner = commands.get_command(context, name)
        assert inner is not None, f"`{name}` is not one of {', '.join(COMMANDS)}"
        context = click.Context(inner, parent=context, info_name=name)
    return context.command.get_help(context)


def refreshed(page: str) -> str:
    """A page with the present help texts between its markers."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}```text\n{help_text(match['command'])}\n```\n{match[3]}"

    return _BLOCK.sub(block, page)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(refreshed(file.read_text(encoding="utf-8")), encoding="utf-8")
