"""``mergekit fill-missing-params``: put a part that was merged by itself back into its whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit.cli.generated import telling, versioned
from mergekit.cli.merge import (
    WRITTEN,
    as_elsewhere,
    cached_in,
    from_scratch,
    heed_stop,
    job_options,
    on_cluster,
    on_threads,
    overwriting,
    strictly,
    tell,
    unchecked,
    with_card,
    within_memory,
    without_device,
)
from mergekit.cli.options import GENERAL, Command, ignored_flags, option
from mergekit.cli.output import Output
from mergekit.cli.sizes import read_size

if TYPE_CHECKING:
    from mergekit.merging import JobOptions

MATCHING = "Which tensors are replaced"


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        old, sign, new = value.partition("=")
        if not sign or not old:
            raise click.BadParameter(f"`{value}` is not OLD=NEW", ctx, param)
        pairs[old] = new
    return pairs


@click.command("fill-missing-params", cls=Command, context_settings={"max_content_width": 100})
@click.argument("base_model")
@click.argument("sub_model")
@telling
@option(
    GENERAL,
    "--output-dir",
    "--output_dir",
    "out",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="The folder to be made; BASE--SUB beside SUB_MODEL if not given.",
)
@strictly
@option(
    MATCHING,
    "--prefix",
    metavar="TEXT",
    help="What stands before names of SUB_MODEL in BASE_MODEL, such as model.language_model. with its last point; "
    "found out if not given.",
)
@option(
    MATCHING,
    "--map",
    "renamed",
    metavar="OLD=NEW",
    multiple=True,
    callback=_pairs,
    help="Names of SUB_MODEL that begin with OLD begin with NEW in BASE_MODEL; may be repeated, and comes before "
    "--prefix.",
)
@option(
    MATCHING,
    "--on-shape-mismatch",
    "shapes",
    type=click.Choice(["error", "base", "sub"]),
    default="error",
    help="A tensor whose shapes differ is an error (which is the default), or that of one of both is taken.",
)
@overwriting
@from_scratch
@unchecked
@cached_in
@on_cluster
@on_threads
@within_memory
@option(
    WRITTEN,
    "--out-shard-size",
    "--max_shard_size",
    metavar="SIZE",
    type=read_size,
    default="5GB",
    help="Most bytes of tensors in one file: 5GB (which is the default), 500MB, 2GiB, 1.5B; 0 for one file.",
)
@option(
    WRITTEN,
    "--copy-tokenizer/--no-copy-tokenizer",
    default=True,
    help="Take over the files of BASE_MODEL's tokenizer (which is the default).",
)
@with_card
@as_elsewhere
@without_device
@versioned
def fill_missing(base_model: str, sub_model: str, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Write BASE_MODEL with the tensors of SUB_MODEL, a part of it that was merged by itself.

    So a merged language model gets back the parts of its vision-language model. Config, tokenizer and other files are
    those of BASE_MODEL; tensors are copied as they are stored.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        heed_stop()
        output.note(ignored_flags())
        out = flags.pop("out") or _beside(base_model, sub_model)
        matching = {name: flags.pop(name) for name in ("prefix", "renamed", "shapes")}
        only_plan = flags.pop("only_plan")
        _fill(base_model, sub_model, out, matching, job_options(flags, output.drawing), output, only_plan)


def _fill(
    base: str, sub: str, out: Path, matching: dict[str, Any], options: JobOptions, output: Output, only_plan: bool
) -> None:
    from mergekit.cli.planned import show_plan
    from mergekit.fronts import Filling, fill_missing, plan_filling

    filling = Filling(**matching)
    if only_plan:
        show_plan(plan_filling(base, sub, filling, options.plan), out, output)
    else:
        tell(
            out,
            output,
            lambda progress: fill_missing(base, sub, out, filling=filling, options=options, progress=progress),
        )


def _beside(base: str, sub: str) -> Path:
    folder = Path(sub)
    return folder.parent / f"{Path(base).stem}--{folder.stem}"
