"""``mergekit plan``: what a merge would do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mergekit.cli.merge import config_file, in_json, job_of, job_options, of_merges, read_config
from mergekit.cli.options import GENERAL, Command, accepted, ignored_flags, option
from mergekit.cli.output import Output
from mergekit.cli.sizes import read_positive_size

_of_machines = accepted(
    option(
        GENERAL,
        "--nodes",
        metavar="N",
        type=click.IntRange(min=1),
        help="Say what it would cost on a cluster of N machines like this one, too.",
    ),
    option(
        GENERAL,
        "--disk-rate",
        metavar="SIZE",
        type=read_positive_size,
        help="Bytes per second that storage gives a machine, all of them at work: 500MB; measured here if not given.",
    ),
    option(
        GENERAL,
        "--network-rate",
        metavar="SIZE",
        type=read_positive_size,
        help="Bytes per second of a machine's link: 1.25GB (10 Gbit/s) if not given; with --nodes.",
    ),
)


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@click.argument("out_path", type=click.Path(path_type=Path), required=False)
@in_json
@_of_machines
@of_merges
@click.help_option("-h", "--help")
def plan(config_file: str, out_path: Path | None, as_json: bool, **flags: Any) -> None:
    """Say what a merge would do: tensors, bytes read and written, passes, memory, threads, and about how long.

    CONFIG_FILE is a recipe, or - for standard input; OUT_PATH is where the merge would go, which may be left out. The
    time is a rough guess: parts of the models are read, a small file is written beside OUT_PATH and removed, and
    made-up tensors are merged, for about a second. All options of `mergekit yaml` are understood.
    """
    output = Output(as_json)
    with output.failures():
        output.note(ignored_flags())
        _plan(config_file, out_path, flags, output)


def _plan(config_file: str, out: Path | None, flags: dict[str, Any], output: Output) -> None:
    from mergekit.cli.planned import Machines, look_ahead

    machines = Machines(*(flags.pop(key) for key in ("nodes", "disk_rate", "network_rate")))
    text, name = read_config(config_file)
    options = job_options(flags)
    job = job_of(text, name, out, options)
    look_ahead(replace(job, planning=replace(job.planning, preview=True)), output, machines)
