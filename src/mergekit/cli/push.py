"""``mergekit push``: upload a model that has been verified."""

from __future__ import annotations

from pathlib import Path

import click

from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Output
from mergekit.cli.verify import failure

UPLOADED = "Repository"


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("out_path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repository", metavar="USER/NAME")
@option(GENERAL, "-v", "--verbose", count=True, help="Show where a bug is.")
@option(GENERAL, "--quiet/--no-quiet", help="Say nothing but errors.")
@option(GENERAL, "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
@option(UPLOADED, "--private", is_flag=True, help="Only you may see it. A public one that is there is refused.")
@option(UPLOADED, "--revision", metavar="BRANCH", help="The branch; main if not given. It is made if there is none.")
@option(
    UPLOADED,
    "--message",
    metavar="TEXT",
    default="Upload a merge made with mergekit",
    help="Message of the commit.",
)
@click.help_option("-h", "--help")
def push(
    out_path: Path,
    repository: str,
    verbose: int,
    quiet: bool,
    as_json: bool,
    private: bool,
    revision: str | None,
    message: str,
) -> None:
    """Verify the model in the folder OUT_PATH and upload it to the repository USER/NAME of the hub.

    The repository is made if there is none. The same command again resumes what was interrupted: files that are there
    are not sent twice. Needs `hf auth login` once, or a token in HF_TOKEN.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        from mergekit.checkpoint.hub import Destination, upload
        from mergekit.report.verify import verify_folder

        found = verify_folder(out_path)
        if not found.ok:
            output.fail(failure(found.problems))
        output.note([f"verified: {found.tensors:,} tensors with {found.bytes:,} bytes"])
        url = upload(out_path, Destination(repository, revision, private, message), output.drawing)
        output.finish([("uploaded", url)], {"folder": str(out_path), "url": url, "bytes": found.bytes})
