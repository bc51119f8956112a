"""What commands have in common that carry out a recipe which they make, or read in a language of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit import __version__
from mergekit.cli.merge import carry_out, in_json, job_of, of_merges, quietly, verbosely
from mergekit.cli.options import GENERAL, accepted, option
from mergekit.cli.output import Output

if TYPE_CHECKING:
    from mergekit.merging import JobOptions

planning_only = option(GENERAL, "--plan", "only_plan", is_flag=True, help="Say what would be done, and write nothing.")
versioned = accepted(
    click.version_option(__version__, prog_name="mergekit", message="%(prog)s %(version)s"),
    click.help_option("-h", "--help"),
)
telling = accepted(verbosely, quietly, in_json, planning_only)
merging = accepted(of_merges, versioned)
"""The options of every merge, apart from those that tell."""


def plan_or_merge(text: str, name: str, out: Path, options: JobOptions, output: Output, only_plan: bool) -> None:
    """Carry out a recipe, or say what would be done.

    Parameters:
        text: the recipe.
        name: what messages call it.
        out: the folder to be made.
        options: of the merge, with the language of the recipe.
        output: where it is said.
        only_plan: write nothing.
    """
    from mergekit.cli.planned import look_ahead

    if only_plan:
        look_ahead(job_of(text, name, out, options), output)
    else:
        carry_out(text, name, out, options, output)
