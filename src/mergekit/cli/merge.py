"""``mergekit yaml``, also ``mergekit merge`` and ``mergekit-yaml``: carry out a recipe."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit import __version__
from mergekit.cli.options import (
    GENERAL,
    NO_EFFECT,
    Command,
    accepted,
    ignored,
    ignored_flags,
    note_ignored,
    option,
)
from mergekit.cli.output import Output
from mergekit.cli.sizes import read_positive_size, read_size

if TYPE_CHECKING:
    from mergekit.cli.progress import Narrator
    from mergekit.merging import JobOptions
    from mergekit.preview import Job

DANGEROUS = "Dangerous options"
OTHER = "Miscellaneous options"
PERFORMANCE = "Performance options"
WRITTEN = "Output settings"

_LENGTHY = ("tensors", "settings")  # grows with the model, and is in merge_report.json


verbosely = option(GENERAL, "-v", "--verbose", count=True, help="Say what is planned; show where a bug is.")
quietly = option(GENERAL, "--quiet/--no-quiet", help="Say nothing but warnings and errors.")
in_json = option(GENERAL, "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
overwriting = option(DANGEROUS, "--overwrite", is_flag=True, help="Replace OUT_PATH if there is a model.")
from_scratch = option(
    DANGEROUS, "--restart", is_flag=True, help="Begin anew, whatever an interrupted merge has left; else it continues."
)
unchecked = option(
    OTHER, "--no-check", is_flag=True, help="Begin even if there seems to be too little room on the disk."
)
on_threads = option(
    PERFORMANCE,
    "-j",
    "--num-threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads; one per core if not given.",
)
within_memory = option(
    PERFORMANCE,
    "--max-memory",
    metavar="SIZE",
    type=read_positive_size,
    help="Memory to stay within; a quarter of the machine's if not given.",
)
in_shards = option(
    WRITTEN,
    "--out-shard-size",
    metavar="SIZE",
    type=read_size,
    default="5GB",
    help="Most bytes of tensors in one file: 5GB (which is the default), 500MB, 2GiB, 1.5B; 0 for one file.",
)


cached_in = option(
    OTHER,
    "--transformers-cache",
    "cache",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where downloads from the hub are kept; where huggingface_hub keeps them if not given.",
)
streaming = option(
    OTHER,
    "--stream",
    is_flag=True,
    help="Leave weights on the hub: read only what is needed of them, while merging.",
)


def _always_safetensors(ctx: click.Context, param: click.Parameter, value: bool) -> object:
    if not value:
        raise click.BadParameter("pickles are not written, only safetensors", ctx, param)
    return note_ignored(ctx, param, value)


config_file = click.argument("config_file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
strictly = option(GENERAL, "--strict", is_flag=True, help="Treat warnings about the recipe as errors.")
with_code = option(
    DANGEROUS,
    "--allow-code",
    is_flag=True,
    help="Run the Python file that the recipe names as its merge method, which may do all that you may do.",
)
seeded = option(
    OTHER, "--random-seed", metavar="N", type=int, default=0, help="Seed of random methods; 0 if not given."
)
on_device = accepted(
    option(
        PERFORMANCE,
        "--device",
        metavar="NAME",
        help="Compute with torch on: cpu, cuda, cuda:N, mps, xpu, auto, or several that are alike: cuda:0,cuda:1. "
        "Without it: compiled kernels on the CPU, which is also --device kernels.",
    ),
    option(PERFORMANCE, "--cuda/--no-cuda", help="The same as --device cuda."),
    option(
        PERFORMANCE,
        "--multi-gpu/--no-multi-gpu",
        help="Compute on all devices of this kind that are alike; without --device or --cuda, on all accelerators.",
    ),
    option(
        PERFORMANCE,
        "--read-to-gpu/--no-read-to-gpu",
        help="Keep what fits of a tensor on the device, for methods that go over it more than once.",
    ),
    option(PERFORMANCE, "--gpu-rich", is_flag=True, help="The same as --cuda --multi-gpu --read-to-gpu."),
)
without_device = accepted(
    ignored("--read-to-gpu/--no-read-to-gpu", why="the CPU computes"),
    ignored("--multi-gpu/--no-multi-gpu", why="the CPU computes"),
)
on_cluster = accepted(
    option(
        PERFORMANCE,
        "--ray",
        metavar="[ADDRESS]",
        bare=("auto", r"auto|local|[^/\s]+:\d+"),
        help="Merge on the machines of a Ray cluster: the one that runs here, or at HOST:PORT; local for a new one of "
        "this machine alone. -j and --max-memory are those of each of its processes.",
    ),
    option(
        PERFORMANCE,
        "--ray-collect",
        is_flag=True,
        help="As --ray, for machines without shared storage: what they have merged is sent to this one.",
    ),
)
with_card = option(
    WRITTEN,
    "--write-model-card/--no-write-model-card",
    default=True,
    help="Write README.md (which is the default).",
)
of_models = accepted(
    option(
        DANGEROUS,
        "--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings",
        help="Cut vocabularies of unequal size to the rows that all models have, whatever tokens they stand for.",
    ),
    option(
        WRITTEN,
        "--experts",
        type=click.Choice(["as-stored", "fused"]),
        default="as-stored",
        help="Keep the experts of a mixture as the models store them (which is the default), or merge and write the "
        "matrices of all experts of a layer as one tensor each, as transformers 5 holds them.",
    ),
    option(
        WRITTEN,
        "--copy-tokenizer/--no-copy-tokenizer",
        default=True,
        help="Take over the tokenizer's files (which is the default).",
    ),
)
as_elsewhere = accepted(
    ignored("--allow-crimes/--no-allow-crimes", why="the tensors decide whether models go together"),
    ignored("--trust-remote-code/--no-trust-remote-code", why="no code of a checkpoint is ever run"),
    ignored("--lora-merge-cache", metavar="FOLDER", why="no merged copy of an adapter is put on disk"),
    ignored("--lora-merge-dtype", metavar="DTYPE", why="adapters are computed with in float32"),
    ignored("--low-cpu-memory/--no-low-cpu-memory", why="models are never held in memory"),
    ignored("--lazy-unpickle/--no-lazy-unpickle", why="reading is always lazy"),
    ignored("--async-write/--no-async-write", why="every thread writes what it has merged"),
    ignored("--write-threads", metavar="N", type=int, why="every thread writes what it has merged"),
    ignored("--clone-tensors/--no-clone-tensors", why="no tensor is held in memory that could be shared"),
    option(
        NO_EFFECT,
        "--safe-serialization/--no-safe-serialization",
        default=True,
        expose_value=False,
        callback=_always_safetensors,
        help="the output is always safetensors; --no-safe-serialization is refused",
    ),
)


of_merges = accepted(
    strictly,
    overwriting,
    from_scratch,
    unchecked,
    with_code,
    cached_in,
    streaming,
    seeded,
    on_device,
    on_cluster,
    on_threads,
    within_memory,
    in_shards,
    of_models,
    with_card,
    as_elsewhere,
)
"""All that a merge of models can be told, so that it can be looked at with the same words before."""


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@click.argument("out_path", type=click.Path(path_type=Path))
@verbosely
@quietly
@in_json
@option(GENERAL, "--plan", "only_plan", is_flag=True, help="Say what would be done, and write nothing.")
@of_merges
@click.version_option(__version__, prog_name="mergekit", message="%(prog)s %(version)s")
@click.help_option("-h", "--help")
def merge(config_file: str, out_path: Path, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Merge models as the recipe CONFIG_FILE says into a new model folder OUT_PATH.

    CONFIG_FILE is a YAML file, or - for standard input. OUT_PATH appears complete, or not at all.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        output.note(ignored_flags())
        _merge(config_file, out_path, flags, output)


def _merge(config_file: str, out: Path, flags: dict[str, Any], output: Output) -> None:
    from mergekit.api.options import first_device
    from mergekit.cli.moe import build
    from mergekit.cli.planned import look_ahead
    from mergekit.recipe.kinds import is_moe

    heed_stop()
    only_plan = flags.pop("only_plan")
    text, name = read_config(config_file)
    options = job_options(flags, output.drawing)
    if only_plan:
        look_ahead(job_of(text, name, out, options), output)
    elif is_moe(text):
        from mergekit.moe import GateOptions, MoeOptions

        build(text, name, out, options, MoeOptions(gates=GateOptions(first_device(options.device))), output)
    else:
        carry_out(text, name, out, options, output)


def job_options(flags: dict[str, Any], bars: bool = False) -> JobOptions:
    """What the options of :data:`of_merges` mean.

    Parameters:
        flags: by name.
        bars: show downloads as they go.
    """
    from mergekit.api.options import MergeOptions, carrying_out

    return carrying_out(MergeOptions(transformers_cache=flags.pop("cache"), **flags), bars)


def job_of(text: str, name: str, out: Path | None, options: JobOptions) -> Job:
    """A merge, or a mixture, that can be looked at before it is carried out.

    Parameters:
        text: the recipe, YAML.
        name: the recipe's name, for messages.
        out: the folder to be made, or None if that is not known yet.
        options: of the merge.
    """
    from mergekit.preview import Job
    from mergekit.recipe.kinds import is_moe

    job = Job(text, name, out, options.plan, options.device, options.overwrite, options.keeping)
    if not is_moe(text):
        return job
    from mergekit.moe import try_to_plan_moe

    return replace(job, tried=try_to_plan_moe)


def heed_stop() -> None:
    """From now on, being stopped is as good as Ctrl-C: what is finished is kept, and the rest is tidied up."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def carry_out(text: str, name: str, out: Path, options: JobOptions, output: Output) -> None:
    """Check a recipe, carry it out, and say what came of it.

    Parameters:
        text: the recipe, YAML.
        name: the recipe's name, for messages.
        out: the folder to be made.
        options: of the merge.
        output: where it is said.
    """
    from mergekit.merging import merge_recipe

    tell(out, output, lambda progress: merge_recipe(text, out, file=name, options=options, progress=progress))


def tell(out: Path, output: Output, job: Callable[[Narrator], Mapping[str, Any]]) -> None:
    """Do a job that merges, and say what came of it.

    Parameters:
        out: what is to be made.
        output: where it is said.
        job: tells its progress; returns the report.
    """
    from mergekit.cli.progress import Narrator
    from mergekit.report.record import headline

    with Narrator(output) as narrator:
        report = job(narrator)
    record = {"out": str(out), "report": essentials(report)}
    output.finish([*headline(report), ("output", click.format_filename(out))], record)


def essentials(report: Mapping[str, Any]) -> dict[str, Any]:
    """What of a report is told: all but what grows with the model."""
    return {key: value for key, value in report.items() if key not in _LENGTHY}


def read_config(config_file: str) -> tuple[str, str]:
    """The text of a recipe's file, or of standard input, and what messages call it."""
    from mergekit.recipe import decoded

    name = "<stdin>" if config_file == "-" else config_file
    with click.open_file(config_file, "rb") as stream:
        return decoded(stream.read(), name), name
