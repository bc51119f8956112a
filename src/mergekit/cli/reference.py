"""``python -m mergekit.cli.reference FILE...`` brings the generated parts of documentation pages up to date.

They stand between ``<!-- help: mergekit yaml -->`` or ``<!-- methods: overview -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from mergekit.cli.main import COMMANDS, commands
from mergekit.cli.merge import merge

WIDTH = 100
_BLOCK = re.compile(r"(<!-- (?P<kind>help|methods): (?P<what>.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


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
    """A page with its generated parts as they are now."""
    from mergekit.cli.reference_methods import methods_part

    def block(match: re.Match[str]) -> str:
        if match["kind"] == "methods":
            return f"{match[1]}\n{methods_part(match['what'])}\n\n{match[4]}"
        return f"{match[1]}```text\n{help_text(match['what'])}\n```\n{match[4]}"

    return _BLOCK.sub(block, page)


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(refreshed(file.read_text(encoding="utf-8")), encoding="utf-8")
