"""``mergekit verify``: check a written model against its report."""

from __future__ import annotations

from pathlib import Path

import click

from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Failure, Output
from mergekit.errors import Problem, VerificationError


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("out_path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@option(GENERAL, "-v", "--verbose", count=True, help="Show where a bug is.")
@option(GENERAL, "--quiet/--no-quiet", help="Say nothing but errors.")
@option(GENERAL, "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
@click.help_option("-h", "--help")
def verify(out_path: Path, verbose: int, quiet: bool, as_json: bool) -> None:
    """Check that the model in the folder OUT_PATH is complete and what its merge report says."""
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        _verify(out_path, output)


def _verify(folder: Path, output: Output) -> None:
    from mergekit.report.verify import verify_folder

    found = verify_folder(folder)
    if not found.ok:
        output.fail(failure(found.problems))
    rows = [
        ("checked", ", ".join(found.checked)),
        ("tensors", f"{found.tensors:,} with {found.bytes:,} bytes"),
        *(("remark", remark) for remark in found.remarks),
        ("verified", click.format_filename(folder)),
    ]
    record = {
        "folder": str(folder),
        "tensors": found.tensors,
        "bytes": found.bytes,
        "checked": found.checked,
        "remarks": found.remarks,
    }
    output.finish(rows, record)


def failure(problems: tuple[Problem, ...]) -> Failure:
    """Why a folder is not what it should be.

    Parameters:
        problems: everything that is wrong with it.
    """
    title = "" if len(problems) == 1 else f"{len(problems)} problems in the model\n\n"
    message = title + "\n\n".join(str(problem) for problem in problems)
    return Failure(VerificationError.__name__, message, VerificationError.exit_code, problems)
