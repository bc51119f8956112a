"""``mergekit pytorch`` and ``mergekit-pytorch``: merge raw checkpoints, without config or architecture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from mergekit import __version__
from mergekit.cli.merge import (
    as_elsewhere,
    config_file,
    from_scratch,
    heed_stop,
    in_json,
    in_shards,
    on_cluster,
    on_device,
    on_threads,
    overwriting,
    quietly,
    read_config,
    seeded,
    strictly,
    tell,
    unchecked,
    verbosely,
    with_card,
    with_code,
    within_memory,
)
from mergekit.cli.options import GENERAL, Command, accepted, ignored, ignored_flags, option
from mergekit.cli.output import Output

MATCHING = "Tensors that are not alike"

_of_models = accepted(
    ignored("--transformers-cache", metavar="FOLDER", why="nothing is downloaded"),
    ignored("--copy-tokenizer/--no-copy-tokenizer", why="raw checkpoints have no tokenizer"),
    ignored(
        "--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings", why="tensors of one name must have one shape"
    ),
)


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@click.argument("out_path", type=click.Path(path_type=Path))
@verbosely
@quietly
@in_json
@option(GENERAL, "--plan", "only_plan", is_flag=True, help="Say what would be done, and write nothing.")
@strictly
@option(MATCHING, "-i", "--tensor-intersection", is_flag=True, help="Leave out tensors that not all checkpoints have.")
@option(
    MATCHING,
    "-u",
    "--tensor-union",
    is_flag=True,
    help="Merge tensors from the checkpoints that have them; take them as they are from a single one. Without either "
    "flag, a tensor that is not in all checkpoints is an error.",
)
@option(
    MATCHING,
    "--integers",
    type=click.Choice(["same", "base"]),
    default="same",
    help="Tensors of whole numbers, or of true and false, must be the same (which is the default), or are taken from "
    "the base, or from the first checkpoint without one.",
)
@overwriting
@from_scratch
@unchecked
@with_code
@seeded
@on_device
@on_cluster
@on_threads
@within_memory
@in_shards
@with_card
@as_elsewhere
@_of_models
@click.version_option(__version__, prog_name="mergekit", message="%(prog)s %(version)s")
@click.help_option("-h", "--help")
def pytorch(config_file: str, out_path: Path, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Merge raw checkpoints, matched by tensor name, as the recipe CONFIG_FILE says.

    Checkpoints are files of safetensors or of torch.save, indexes of shards, or folders. OUT_PATH is a new folder, or a
    single file if it ends in .safetensors; it appears complete, or not at all.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        output.note(ignored_flags())
        _merge(config_file, out_path, flags, output)


def _merge(config_file: str, out: Path, flags: dict[str, Any], output: Output) -> None:
    from mergekit.api.options import MergeOptions, carrying_out
    from mergekit.cli.planned import show_plan
    from mergekit.raw import Matching, merge_raw, plan_raw, planning_for

    heed_stop()
    text, name = read_config(config_file)
    intersection, union = flags.pop("tensor_intersection"), flags.pop("tensor_union")
    if intersection and union:
        output.note(["`--tensor-union` has no effect: `--tensor-intersection` is given, too"])
    matching = Matching("intersection" if intersection else "union" if union else "same", flags.pop("integers"))
    only_plan = flags.pop("only_plan")
    options = carrying_out(MergeOptions(**flags))
    if only_plan:
        planning = planning_for(out, options.plan)
        show_plan(plan_raw(text, file=name, options=planning, matching=matching), out, output)
    else:
        job = partial(merge_raw, text, out, file=name, options=options, matching=matching)
        tell(out, output, lambda progress: job(progress=progress))
