"""``mergekit layershuffle`` and ``mergekit-layershuffle``: a model of layers that are drawn from several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit.cli.generated import merging, plan_or_merge, telling
from mergekit.cli.merge import WRITTEN, heed_stop, job_options
from mergekit.cli.options import GENERAL, Command, ignored_flags, option
from mergekit.cli.output import Output

DRAWN = "What is drawn"


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("out_path", type=click.Path(path_type=Path), required=False)
@telling
@option(GENERAL, "--print-yaml/--no-print-yaml", help="Print the recipe that was drawn.")
@option(
    GENERAL,
    "--write-yaml",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the recipe that was drawn.",
)
@option(GENERAL, "--dry-run", is_flag=True, help="Draw a recipe, and merge nothing; OUT_PATH is not needed.")
@option(DRAWN, "-m", "--model", "models", metavar="MODEL", multiple=True, required=True, help="May be repeated.")
@option(
    DRAWN,
    "-w",
    "--weight",
    "weights",
    type=float,
    multiple=True,
    help="The chance of each model in their order; with --full-random the number of layers that it gives, as a share "
    "of those that it has. Equal shares of 1 in all if not given.",
)
@option(
    DRAWN,
    "--full-random/--no-full-random",
    help="Draw layers, too, and put them in random order; without it each layer stays at its place.",
)
@option(WRITTEN, "--fp16/--no-fp16", help="Write float16.")
@merging
def layershuffle(out_path: Path | None, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Make a new model folder OUT_PATH of layers that are drawn at random from several models.

    What stands before the layers comes from the model of the first one, what stands behind them from that of the last
    one. The same --random-seed draws the same layers.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        heed_stop()
        output.note(ignored_flags())
        if out_path is None and not flags["dry_run"]:
            raise click.UsageError("Missing argument 'OUT_PATH'.")
        _shuffle(out_path, flags, output)


def _shuffle(out: Path | None, flags: dict[str, Any], output: Output) -> None:
    from mergekit.fronts import layers_of, shuffle_layers

    models, weights, half = flags.pop("models"), flags.pop("weights"), flags.pop("fp16")
    shown, file, dry = flags.pop("print_yaml"), flags.pop("write_yaml"), flags.pop("dry_run")
    full, only_plan = flags.pop("full_random"), flags.pop("only_plan")
    options = job_options(flags, output.drawing)
    heights = [layers_of(model, options.plan.hub) for model in models]
    dtype, seed = "float16" if half else None, options.plan.seed
    text = shuffle_layers(models, heights, weights, full_random=full, seed=seed, dtype=dtype)
    if shown and not output.as_json:
        click.echo(text)
    if file is not None:
        from mergekit.checkpoint.writing import reported

        with reported(file, len(text.encode())):
            file.write_text(text, encoding="utf-8")
    if out is None or dry:
        where = [("recipe", click.format_filename(file))] if file is not None else []
        output.finish([("layers", str(text.count("- sources:"))), *where], {"recipe": text})
    else:
        plan_or_merge(text, str(file) if file else "<drawn>", out, options, output, only_plan)
