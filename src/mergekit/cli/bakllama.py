"""``mergekit bakllama`` and ``bakllama``: stack layers of several models, as a config of fewer keys says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mergekit.cli.generated import merging, plan_or_merge, telling
from mergekit.cli.merge import WRITTEN, config_file, heed_stop, job_options, read_config
from mergekit.cli.options import Command, ignored_flags, option
from mergekit.cli.output import Output


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@click.argument("out_path", type=click.Path(path_type=Path))
@telling
@option(WRITTEN, "--fp16/--no-fp16", help="Write float16.")
@merging
def bakllama(config_file: str, out_path: Path, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Stack layers of several models as CONFIG_FILE says into a new model folder OUT_PATH.

    CONFIG_FILE is YAML with the keys layer_slices, a list of model, start, end and scale, and embedding_source and
    lm_head_source for the models that give what stands before and behind the layers.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        from mergekit.fronts import HALF, stacking

        heed_stop()
        output.note(ignored_flags())
        only_plan, half = flags.pop("only_plan"), flags.pop("fp16")
        text, name = read_config(config_file)
        options = job_options(flags, output.drawing)
        options = replace(options, plan=stacking(options.plan, HALF if half else None))
        plan_or_merge(text, name, out_path, options, output, only_plan)
