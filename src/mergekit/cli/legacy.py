"""``mergekit legacy`` and ``mergekit-legacy``: merge as flags say, without a recipe's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit.cli.generated import merging, plan_or_merge, telling
from mergekit.cli.merge import WRITTEN, heed_stop, job_options
from mergekit.cli.options import GENERAL, Command, ignored_flags, option
from mergekit.cli.output import Output

RECIPE = "What is merged"

_OWN = ("models", "method", "base_model", "density", "weight", "normalize", "int8_mask", "naive_count")


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("out_path", type=click.Path(path_type=Path))
@telling
@option(GENERAL, "--print-yaml/--no-print-yaml", help="Print the recipe that the flags stand for.")
@option(RECIPE, "--merge", "models", metavar="MODEL", multiple=True, required=True, help="A model; may be repeated.")
@option(RECIPE, "--method", metavar="NAME", default="ties", help="The merge method; ties if not given.")
@option(RECIPE, "--base-model", metavar="MODEL", help="The model that the others are compared with.")
@option(
    RECIPE,
    "--density",
    type=float,
    multiple=True,
    help="Share of entries to keep: once for all models, or once for each in their order.",
)
@option(
    RECIPE,
    "--weight",
    type=float,
    multiple=True,
    help="Weight: once for all models, or once for each in their order; 1 if not given. With slerp it is t.",
)
@option(
    RECIPE,
    "--normalize/--no-normalize",
    default=None,
    help="Divide by the sum of the weights (which is the default where the method can).",
)
@option(RECIPE, "--int8-mask/--no-int8-mask", help="Write int8_mask into the recipe, which has no effect.")
@option(RECIPE, "--naive-count/--no-naive-count", help="Elect signs by counting models.")
@option(WRITTEN, "--bf16/--no-bf16", help="Write bfloat16.")
@merging
def legacy(out_path: Path, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Merge the models that flags name into a new model folder OUT_PATH.

    The flags stand for a recipe, which is kept in OUT_PATH. A base that is none of the models is added to them.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        from mergekit.fronts import legacy_recipe

        heed_stop()
        output.note(ignored_flags())
        own = {name: flags.pop(name) for name in _OWN}
        text = legacy_recipe(**own, dtype="bfloat16" if flags.pop("bf16") else None)
        if flags.pop("print_yaml") and not as_json:
            click.echo(text)
        only_plan = flags.pop("only_plan")
        plan_or_merge(text, "<flags>", out_path, job_options(flags, output.drawing), output, only_plan)
