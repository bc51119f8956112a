"""``mergekit reproduce``: merge again what a folder says it was merged from, and compare every byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit.cli.merge import cached_in, heed_stop, in_json, on_device, on_threads, quietly, with_code, within_memory
from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Output
from mergekit.cli.verify import failure

if TYPE_CHECKING:
    from mergekit.reproducing import Reproduction


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("out_path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@option(GENERAL, "-v", "--verbose", count=True, help="Show where a bug is.")
@quietly
@in_json
@option(
    GENERAL,
    "--against",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Compare the new merge with the model in this folder instead of OUT_PATH.",
)
@with_code
@cached_in
@on_device
@on_threads
@within_memory
@click.help_option("-h", "--help")
def reproduce(out_path: Path, verbose: int, quiet: bool, as_json: bool, against: Path | None, **flags: Any) -> None:
    """Merge again what the model in the folder OUT_PATH was merged from, and compare every byte.

    The recipe and the options are those that lie in OUT_PATH. The new model is written into a temporary folder beside
    it, which is gone afterwards. Compared are the weights, config.json, the tokenizer and whatever else a merge writes,
    but for the report and the model card.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        _reproduce(out_path, against, flags, output)


def _reproduce(out: Path, against: Path | None, flags: dict[str, Any], output: Output) -> None:
    from mergekit.api.options import MergeOptions, carrying_out
    from mergekit.cli.progress import Narrator
    from mergekit.reproducing import reproduce as again

    heed_stop()
    options = carrying_out(MergeOptions(transformers_cache=flags.pop("cache"), **flags), output.drawing)
    with Narrator(output) as narrator:
        found = again(out, against=against, options=options, progress=narrator)
    _tell(found, output)


def _tell(found: Reproduction, output: Output) -> None:
    if not found.ok:
        output.fail(failure((*found.changes, *found.problems)))
    output.warn(found.changes)
    rows = [
        ("compared", f"{found.tensors:,} tensors; {', '.join(found.files)}"),
        ("the same", click.format_filename(found.folder)),
    ]
    changes = [change.what for change in found.changes]
    record = {"folder": str(found.folder), "tensors": found.tensors, "files": found.files, "changes": changes}
    output.finish(rows, record)
