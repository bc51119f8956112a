"""The commands ``mergekit`` and ``mergekit-yaml``."""

from __future__ import annotations

import atexit
import gc
from importlib import import_module

import click

from mergekit import __version__
from mergekit.cli.options import write_exit_codes

COMMANDS = {
    "yaml": "mergekit.cli.merge:merge",
    "merge": "mergekit.cli.merge:merge",
    "check": "mergekit.cli.check:check",
    "plan": "mergekit.cli.plan:plan",
    "explain": "mergekit.cli.explain:explain",
    "multi": "mergekit.cli.multi:multi",
    "pytorch": "mergekit.cli.pytorch:pytorch",
    "layershuffle": "mergekit.cli.layershuffle:layershuffle",
    "legacy": "mergekit.cli.legacy:legacy",
    "bakllama": "mergekit.cli.bakllama:bakllama",
    "fill-missing-params": "mergekit.cli.fill_missing:fill_missing",
    "moe": "mergekit.cli.moe:moe",
    "tokensurgeon": "mergekit.cli.tokensurgeon:tokensurgeon",
    "extract-lora": "mergekit.cli.extract_lora:extract_lora",
    "merge-adapters": "mergekit.cli.merge_adapters:merge_adapters",
    "convert": "mergekit.cli.convert:convert",
    "verify": "mergekit.cli.verify:verify",
    "reproduce": "mergekit.cli.reproduce:reproduce",
    "push": "mergekit.cli.push:push",
    "inspect": "mergekit.cli.inspect:inspect",
    "diff": "mergekit.cli.diff:diff",
    "tokens": "mergekit.cli.tokens:tokens",
    "methods": "mergekit.cli.methods:methods",
    "schema": "mergekit.cli.schema:schema",
    "evolve": "mergekit.cli.evolve:evolve",
    "sweep": "mergekit.cli.sweep:sweep",
}
"""Commands by name, as module and attribute; a module under two names is one command with an alias."""

_SELDOM = 100_000  # objects more than before, when the collector looks for garbage; importing makes some 300,000


def _imported(command: str) -> click.Command:
    module, _, attribute = command.partition(":")
    found = getattr(import_module(module), attribute)
    assert isinstance(found, click.Command)
    return found


def _run(command: click.Command | str, name: str) -> None:
    """Run a command as a process of its own, which has little garbage and no use for what lives until its end."""
    gc.set_threshold(_SELDOM)
    atexit.register(gc.freeze)
    (_imported(command) if isinstance(command, str) else command).main(prog_name=name)


class Lazy(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """All names, in the order of the help text."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        return _imported(COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line per command, aliases together."""
        names: dict[click.Command, list[str]] = {}
        for name in COMMANDS:
            command = self.get_command(ctx, name)
            assert command is not None
            names.setdefault(command, []).append(name)
        rows = [(", ".join(called), command.get_short_help_str(limit=200)) for command, called in names.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes."""
        write_exit_codes(formatter)


@click.group("mergekit", cls=Lazy, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="mergekit", message="%(prog)s %(version)s")
@click.help_option("-h", "--help")
def commands() -> None:
    """Merge pretrained language models in weight space, out of core, on ordinary machines."""


def main() -> None:
    """Run ``mergekit``."""
    _run(commands, "mergekit")


def main_yaml() -> None:
    """Run ``mergekit-yaml``."""
    _run("mergekit.cli.merge:merge", "mergekit-yaml")


def main_moe() -> None:
    """Run ``mergekit-moe``."""
    _run("mergekit.cli.moe:moe", "mergekit-moe")


def main_pytorch() -> None:
    """Run ``mergekit-pytorch``."""
    _run("mergekit.cli.pytorch:pytorch", "mergekit-pytorch")


def main_multi() -> None:
    """Run ``mergekit-multi``."""
    _run("mergekit.cli.multi:multi", "mergekit-multi")


def main_layershuffle() -> None:
    """Run ``mergekit-layershuffle``."""
    _run("mergekit.cli.layershuffle:layershuffle", "mergekit-layershuffle")


def main_legacy() -> None:
    """Run ``mergekit-legacy``."""
    _run("mergekit.cli.legacy:legacy", "mergekit-legacy")


def main_bakllama() -> None:
    """Run ``bakllama``."""
    _run("mergekit.cli.bakllama:bakllama", "bakllama")


def main_tokensurgeon() -> None:
    """Run ``mergekit-tokensurgeon``."""
    _run("mergekit.cli.tokensurgeon:tokensurgeon", "mergekit-tokensurgeon")


def main_evolve() -> None:
    """Run ``mergekit-evolve``."""
    _run("mergekit.cli.evolve:evolve", "mergekit-evolve")


def main_extract_lora() -> None:
    """Run ``mergekit-extract-lora``."""
    _run("mergekit.cli.extract_lora:extract_lora", "mergekit-extract-lora")


if __name__ == "__main__":
    main()
