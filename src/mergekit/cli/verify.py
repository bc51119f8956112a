"""``mergekit verify``: check a written model against its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Failure, Output
from mergekit.errors import MergekitError, Problem, VerificationError

if TYPE_CHECKING:
    from mergekit.plan import Plan


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("out_path", type=click.Path(exists=True, path_type=Path))
@option(GENERAL, "-v", "--verbose", count=True, help="Show where a bug is.")
@option(GENERAL, "--quiet/--no-quiet", help="Say nothing but errors.")
@option(GENERAL, "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
@option(
    GENERAL,
    "--full",
    is_flag=True,
    help="Compare all tensors with those of the merged models, not only some; and have transformers, if it is "
    "installed, read the config and compare the names of all weights.",
)
@click.help_option("-h", "--help")
def verify(out_path: Path, verbose: int, quiet: bool, as_json: bool, full: bool) -> None:
    """Check that the model in the folder OUT_PATH is complete and what its merge report says.

    All weights are read. They are also compared with those of the merged models, where these still are where they were:
    about 16 tensors, or all with --full. Without a report the model is checked by itself. A single file of safetensors
    may be given as well.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        _verify(out_path, full, output)


def _verify(folder: Path, full: bool, output: Output) -> None:
    from mergekit.report.verify import verify_folder

    plan, remarks = _planned_again(folder)
    found = verify_folder(folder, plan=plan, full=full)
    remarks = [*found.remarks, *remarks]
    if not found.ok:
        output.fail(failure(found.problems))
    rows = [
        ("checked", ", ".join(found.checked)),
        ("tensors", f"{found.tensors:,} with {found.bytes:,} bytes"),
        *(("remark", remark) for remark in remarks),
        ("verified", click.format_filename(folder)),
    ]
    record = {
        "folder": str(folder),
        "tensors": found.tensors,
        "bytes": found.bytes,
        "checked": found.checked,
        "remarks": remarks,
    }
    output.finish(rows, record)


def _planned_again(folder: Path) -> tuple[Plan | None, list[str]]:
    """The plan of the merge, or why the model is not compared with what it was merged from."""
    from mergekit.making import RECIPE
    from mergekit.origin import REPORT, read_origin

    if not ((folder / RECIPE).is_file() and (folder / REPORT).is_file()):
        return None, []
    try:
        origin = read_origin(folder)
        if changes := origin.changes():
            return None, [_not_compared(change.what) for change in changes]
        return origin.planned(), []
    except MergekitError as error:
        return None, [_not_compared(str(error).splitlines()[0])]


def _not_compared(why: str) -> str:
    return f"the weights are not compared with those that were merged: {why}"


def failure(problems: tuple[Problem, ...]) -> Failure:
    """Why a folder is not what it should be.

    Parameters:
        problems: everything that is wrong with it.
    """
    title = "" if len(problems) == 1 else f"{len(problems)} problems in the model\n\n"
    message = title + "\n\n".join(str(problem) for problem in problems)
    return Failure(VerificationError.__name__, message, VerificationError.exit_code, problems)
