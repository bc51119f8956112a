"""``mergekit merge-adapters``: merge LoRA adapters without the weights of their base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit import __version__
from mergekit.cli.merge import (
    DANGEROUS,
    OTHER,
    WRITTEN,
    cached_in,
    heed_stop,
    in_json,
    on_threads,
    quietly,
    read_config,
    strictly,
    verbosely,
    with_card,
    with_code,
)
from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Output

if TYPE_CHECKING:
    from mergekit.lora.merging import AdapterMerge

METHOD = "Adapters on the command line"


@click.command("merge-adapters", cls=Command, context_settings={"max_content_width": 100})
@click.argument("inputs", nargs=-1, required=True, metavar="RECIPE | ADAPTER...")
@click.argument("out_path", type=click.Path(path_type=Path))
@verbosely
@quietly
@in_json
@option(GENERAL, "--plan", "only_plan", is_flag=True, help="Say what would be done, and write nothing.")
@strictly
@option(METHOD, "--method", metavar="NAME", help="The merge method; task_arithmetic if not given.")
@option(
    METHOD,
    "--weight",
    "weights",
    metavar="NUMBER",
    type=float,
    multiple=True,
    help="Weight of each adapter, in their order, or one for all; 1 if not given.",
)
@option(
    METHOD,
    "-p",
    "--parameter",
    "parameters",
    metavar="NAME=VALUE",
    multiple=True,
    help="A parameter of the method, such as density=0.5. Repeatable.",
)
@option(
    WRITTEN,
    "--rank",
    metavar="N",
    type=click.IntRange(min=1),
    help="Highest rank of the output: the largest singular values are kept. All if not given, which are at most as "
    "many as the ranks of the adapters add up to.",
)
@option(
    WRITTEN,
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Dtype of the output, for adapters on the command line; float32 if not given.",
)
@with_card
@option(DANGEROUS, "--overwrite", is_flag=True, help="Replace OUT_PATH if there is an adapter or a model.")
@with_code
@cached_in
@option(OTHER, "--random-seed", metavar="N", type=int, default=0, help="Seed of random methods; 0 if not given.")
@on_threads
@click.version_option(__version__, prog_name="mergekit", message="%(prog)s %(version)s")
@click.help_option("-h", "--help")
def merge_adapters(
    inputs: tuple[str, ...], out_path: Path, verbose: int, quiet: bool, as_json: bool, **flags: Any
) -> None:
    """Merge LoRA adapters of one base into an adapter OUT_PATH, without the weights of the base.

    RECIPE is a YAML file with merge_method, models, parameters and dtype, whose models are adapters; or adapters are
    named one by one, two or more, and the method by --method. No dense matrix is made: the method sees the products
    in their common core space, as square matrices of at most all ranks together.

    \b
    exact          task_arithmetic, linear, model_stock, nuslerp, multislerp give
                   what they give on dense deltas: sums, norms and angles are the
                   same in the core space
    in the cores   ties, dare_*, breadcrumbs*, della*, sce, ram*, and methods of
                   your own look at entries of the cores, which are combinations
                   of those of the dense deltas: another, related result
    refused        slerp, karcher, nearswap, arcee_fusion, passthrough; adapters
                   that hold whole tensors, rows of tokens or norms (DoRA)
    """  # noqa: D301  (click keeps the lines of a paragraph that begins with a backspace)
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        text, name = _recipe(inputs, flags)
        _merge(text, name, out_path, flags, output)


def _recipe(inputs: tuple[str, ...], flags: Mapping[str, Any]) -> tuple[str, str]:
    """The recipe and what messages call it: a file, or made of the command line."""
    own = ("method", "weights", "parameters", "dtype")
    if len(inputs) == 1 and (inputs[0] == "-" or Path(inputs[0]).is_file()):
        if given := [key for key in own if flags[key]]:
            name = "--" + given[0].removesuffix("s")
            raise click.UsageError(f"`{name}` is for adapters on the command line, and {inputs[0]} is a recipe")
        return read_config(inputs[0])
    weights = flags["weights"] or (1.0,)
    if len(weights) not in (1, len(inputs)):
        raise click.UsageError(
            f"{len(weights)} weights for {len(inputs)} adapters: expected one for each, or one for all"
        )
    return _composed(inputs, weights * (len(inputs) // len(weights)), flags), "<command line>"


def _composed(adapters: tuple[str, ...], weights: tuple[float, ...], flags: Mapping[str, Any]) -> str:
    import yaml

    from mergekit.methods import METHODS

    method = flags["method"] or "task_arithmetic"
    weighed = method not in METHODS or any(one.name == "weight" for one in METHODS[method].parameters())
    entries: list[dict[str, object]] = []
    for adapter, weight in zip(adapters, weights, strict=True):
        own = {"parameters": {"weight": weight}} if weighed or flags["weights"] else {}
        entries.append({"model": adapter, **own})
    recipe: dict[str, object] = {"merge_method": method, "models": entries}
    if flags["parameters"]:
        recipe["parameters"] = dict(_parameter(text) for text in flags["parameters"])
    if flags["dtype"]:
        recipe["dtype"] = flags["dtype"]
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def _parameter(text: str) -> tuple[str, object]:
    import yaml

    name, sign, value = text.partition("=")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise click.UsageError(f"`{text}`: {value!r} is no value") from error
    if not sign or not name:
        raise click.UsageError(f"`{text}` is no parameter: expected NAME=VALUE, such as density=0.5")
    return name, found


def _merge(text: str, name: str, out: Path, flags: Mapping[str, Any], output: Output) -> None:
    from mergekit.checkpoint.hub import Hub
    from mergekit.cli.progress import Narrator
    from mergekit.lora import Running, merge_adapters, plan_adapter_merge

    heed_stop()
    plan = plan_adapter_merge(
        text,
        file=name,
        rank=flags["rank"],
        seed=flags["random_seed"],
        strict=flags["strict"],
        allow_code=flags["allow_code"],
        hub=Hub(flags["cache"], bars=output.drawing),
    )
    if flags["only_plan"]:
        _show_plan(plan, out, output)
        return
    with Narrator(output) as narrator:
        running = Running(
            workers=flags["num_threads"],
            overwrite=flags["overwrite"],
            card=flags["write_model_card"],
            planned=lambda *what: narrator.begin("merging", *what),
            advance=narrator.advance,
        )
        record = merge_adapters(plan, out, running)
    essentials = {key: record[key] for key in record if key != "modules"}
    output.finish(_rows(record, out), {"out": str(out), "report": essentials})


def _rows(record: Mapping[str, Any], out: Path) -> Iterator[tuple[str, str]]:
    from mergekit.lora.card import rank_text
    from mergekit.report.record import in_units

    totals = record["totals"]
    yield "method", record["method"] + (", exact" if record["exact"] else ", in the core space")
    yield "modules", f"{totals['modules']}"
    yield "rank", rank_text(totals["rank"])
    if totals["energy"] < 1:
        yield "energy", f"at least {100 * totals['energy']:.2f}% of the squared norm of each merged product"
    yield "size", in_units(totals["bytes"])
    yield "output", click.format_filename(out)


def _show_plan(plan: AdapterMerge, out: Path, output: Output) -> None:
    from mergekit.report.record import in_units

    output.warn(plan.findings.warnings)
    output.note(plan.findings.notices)
    ranks = {
        module: sum(member.factors[module].rank for member in plan.members if module in member.factors)
        for module in plan.methods
    }
    rows = [
        ("method", plan.method.name + (", exact" if plan.exact else ", in the core space")),
        ("adapters", ", ".join(member.name for member in plan.members)),
        ("modules", f"{len(plan.methods)}"),
        ("rank", f"at most {min(plan.rank or max(ranks.values()), max(ranks.values()))}"),
        ("reads", in_units(plan.read_bytes)),
        ("output", f"{click.format_filename(out)} (not written)"),
    ]
    record = {
        "method": plan.method.name,
        "exact": plan.exact,
        "adapters": [member.name for member in plan.members],
        "modules": [{"module": module, "stacked": rank} for module, rank in ranks.items()],
        "bytes_read": plan.read_bytes,
        "warnings": [str(problem) for problem in plan.findings.warnings],
        "notices": plan.findings.notices,
    }
    output.finish(rows, {"out": str(out), "plan": record})
