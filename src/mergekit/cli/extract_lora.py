"""``mergekit extract-lora`` and ``mergekit-extract-lora``: a fine-tune as an adapter of its base."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit import __version__
from mergekit.cli.merge import (
    DANGEROUS,
    OTHER,
    WRITTEN,
    as_elsewhere,
    cached_in,
    heed_stop,
    in_json,
    on_threads,
    quietly,
    verbosely,
    with_card,
    within_memory,
    without_device,
)
from mergekit.cli.options import GENERAL, Command, accepted, ignored, ignored_flags, option
from mergekit.cli.output import Output
from mergekit.cli.tables import table

if TYPE_CHECKING:
    from mergekit.lora.extraction import Extraction, Wish

RANK = "Rank"
MODULES = "Modules"


def _patterns(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    try:
        return tuple(re.compile(text) for text in texts)
    except re.error as error:
        raise click.BadParameter(f"`{error.pattern!s}`: {error}") from error


_of_models = accepted(
    ignored("--device", metavar="NAME", why="adapters are computed on the CPU"),
    ignored("--cuda/--no-cuda", why="adapters are computed on the CPU"),
    ignored("--gpu-rich", is_flag=True, why="adapters are computed on the CPU"),
    ignored("--out-shard-size", metavar="SIZE", why="an adapter is one file"),
    ignored("--copy-tokenizer/--no-copy-tokenizer", why="adapters have the tokenizer of their base"),
    ignored("--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings", why="new rows are in the adapter"),
)


@click.command("extract-lora", cls=Command, context_settings={"max_content_width": 100})
@click.argument("places", nargs=-1, metavar="[MODEL BASE_MODEL OUT_PATH]")
@option(GENERAL, "--model", metavar="MODEL", help="The fine-tune: a folder, a file, or a name of the hub.")
@option(GENERAL, "--base-model", metavar="MODEL", help="The model that the adapter is for.")
@option(GENERAL, "--out-path", metavar="FOLDER", help="The folder to be made.")
@verbosely
@quietly
@in_json
@option(GENERAL, "--plan", "only_plan", is_flag=True, help="Say what the adapter would hold, and write nothing.")
@option(
    GENERAL,
    "--check",
    is_flag=True,
    help="Apply the written adapter to the base and compare that with the fine-tune; an adapter that is farther from "
    "it than the report says is an error.",
)
@option(GENERAL, "--modules", "list_modules", is_flag=True, help="List every module, and not only what they are for.")
@option(
    RANK, "--max-rank", metavar="N", type=click.IntRange(min=1), default=128, help="Highest rank; 128 if not given."
)
@option(
    RANK,
    "--energy",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    help="For each module the lowest rank that holds this share of the squared norm of its difference, up to "
    "--max-rank: 0.95.",
)
@option(
    RANK,
    "--sv-epsilon",
    metavar="NUMBER",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Drop singular values up to this number.",
)
@option(
    RANK,
    "--exact",
    is_flag=True,
    help="Decompose by LAPACK's SVD in float64. Without it, matrices of more than 512 lines and columns go through "
    "random sketches, within 2 % of the least error at that rank.",
)
@option(
    RANK,
    "--distribute-scale/--no-distribute-scale",
    default=True,
    help="Give the square roots of the singular values to both factors (which is the default), instead of all to A.",
)
@option(MODULES, "--embed-lora/--no-embed-lora", help="Decompose embeddings and output head, too.")
@option(
    MODULES,
    "--save-module",
    metavar="NAME",
    multiple=True,
    help="Hold modules of this name whole: their last name or the full one. Repeatable.",
)
@option(
    MODULES,
    "-i",
    "--include-regex",
    metavar="REGEX",
    multiple=True,
    callback=_patterns,
    help="Only modules in whose full name this is found. Repeatable.",
)
@option(
    MODULES,
    "-e",
    "--exclude-regex",
    metavar="REGEX",
    multiple=True,
    callback=_patterns,
    help="No module in whose full name this is found. Repeatable.",
)
@option(
    MODULES,
    "--skip-undecomposable",
    is_flag=True,
    help="Leave out what cannot be decomposed, such as norms, instead of holding it whole where it changed.",
)
@option(
    WRITTEN,
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="Dtype of the factors; float32 if not given, which is what peft makes of them.",
)
@with_card
@option(DANGEROUS, "--overwrite", is_flag=True, help="Replace OUT_PATH if there is an adapter or a model.")
@cached_in
@option(OTHER, "--random-seed", metavar="N", type=int, default=0, help="Seed of random sketches; 0 if not given.")
@on_threads
@within_memory
@as_elsewhere
@without_device
@_of_models
@click.version_option(__version__, prog_name="mergekit", message="%(prog)s %(version)s")
@click.help_option("-h", "--help")
def extract_lora(places: tuple[str, ...], verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Write what was done to BASE_MODEL in the fine-tune MODEL as an adapter for peft, the folder OUT_PATH.

    The difference of every matrix becomes a product of two thin ones. Embeddings, output head, norms and other tensors
    are held whole where they changed, or by those rows of the vocabulary that did; modules that are the same in both
    models are not in the adapter. OUT_PATH appears complete, or not at all.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        named = _named(places, flags)
        output.note(ignored_flags())
        _extract(named, flags, output)


def _named(places: tuple[str, ...], flags: dict[str, Any]) -> tuple[str, str, Path]:
    """Fine-tune, base and output: by flags, or by position."""
    names = ("model", "base_model", "out_path")
    given = [flags.pop(name) for name in names]
    free = [index for index, value in enumerate(given) if value is None]
    if len(places) != len(free):
        missing = ", ".join(f"--{names[index].replace('_', '-')}" for index in free) or "nothing more"
        raise click.UsageError(f"expected {missing}, got {len(places)} arguments")
    for index, place in zip(free, places, strict=True):
        given[index] = place
    return given[0], given[1], Path(given[2])


def _wish(flags: Mapping[str, Any]) -> Wish:
    from mergekit.lora import Choice, Goal, Wish

    goal = Goal(flags["max_rank"], flags["sv_epsilon"], flags["energy"])
    choice = Choice(
        flags["embed_lora"],
        flags["save_module"],
        flags["include_regex"],
        flags["exclude_regex"],
        flags["skip_undecomposable"],
    )
    return Wish(goal, choice, flags["distribute_scale"], flags["exact"], flags["dtype"], flags["random_seed"])


def _extract(named: tuple[str, str, Path], flags: Mapping[str, Any], output: Output) -> None:
    from mergekit.checkpoint.hub import Hub
    from mergekit.cli.progress import Narrator
    from mergekit.lora import Running, extract_lora, plan_extraction
    from mergekit.recipe import reference

    heed_stop()
    tuned, base, out = named
    hub = Hub(flags["cache"], bars=output.drawing)
    plan = plan_extraction(reference(base), reference(tuned), _wish(flags), hub)
    if flags["only_plan"]:
        _show_plan(plan, out, output)
        return
    with Narrator(output) as narrator:
        running = Running(
            workers=flags["num_threads"],
            max_memory=flags["max_memory"],
            check=flags["check"],
            overwrite=flags["overwrite"],
            card=flags["write_model_card"],
            invocation=_invocation(),
            planned=lambda *what: narrator.begin("extracting", *what),
            advance=narrator.advance,
        )
        record = extract_lora(plan, out, running)
    if not output.as_json and not output.quiet:
        click.echo("\n".join(described(record, flags["list_modules"])) + "\n")
    essentials = record if flags["list_modules"] else {key: record[key] for key in record if key != "modules"}
    output.finish(_rows(record, out), {"out": str(out), "report": essentials})


def _invocation() -> str:
    import sys

    return shlex.join(["mergekit-extract-lora", *sys.argv[1 + (sys.argv[1:2] == ["extract-lora"]) :]])


def described(record: Mapping[str, Any], modules: bool) -> Iterator[str]:
    """The table of energies, in lines of 80 columns.

    Parameters:
        record: the report.
        modules: of every module, instead of what modules are for.
    """
    from mergekit.lora.card import rank_text

    if modules:
        rows = [
            [_held(own), _percent(own["energy"]), own["module"]]
            for own in record["modules"]
            if own["held"] != "nothing"
        ]
        yield from table(["rank", "energy", "module"], rows, left=0, last=True)
        return
    rows = [
        [own["part"], str(own["changed"]), rank_text(own["rank"]), _percent(own["energy"])] for own in record["parts"]
    ]
    yield from table(["part", "modules", "rank", "energy"], rows)


def _held(module: Mapping[str, Any]) -> str:
    return str(module["rank"]) if module["held"] == "products" else str(module["held"])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _rows(record: Mapping[str, Any], out: Path) -> Iterator[tuple[str, str]]:
    from mergekit.report.record import in_units

    totals = record["totals"]
    same = totals["modules"] - totals["changed"]
    yield "modules", f"{totals['changed']}" + (f", {same} more are the same in both models" if same else "")
    yield "energy", f"{_percent(totals['energy'])} of the squared norm of the difference"
    if check := record.get("check"):
        yield (
            "checked",
            f"the base with the adapter is {check['relative_error']:.3g} of the difference from the fine-tune",
        )
    yield "size", in_units(totals["bytes"])
    yield "output", click.format_filename(out)


def _show_plan(plan: Extraction, out: Path, output: Output) -> None:
    from mergekit.report.record import in_units

    output.warn(plan.pairs.findings.warnings)
    output.note(plan.pairs.findings.notices)
    sizes = [plan.wish.goal.max_rank, *(min(unit.matrix[1:]) for unit in plan.units if unit.matrix[0])]
    products = [unit for unit in plan.units if unit.matrix[0]]
    rows = [
        ("base", str(plan.base)),
        ("model", str(plan.tuned)),
        ("decomposed", f"{len(products)} modules, to rank {min(sizes[0], max(sizes[1:]))} or less"),
        ("whole", f"{len(plan.units) - len(products)} modules, those that changed"),
        ("reads", in_units(plan.read_bytes)),
        ("output", f"{click.format_filename(out)} (not written)"),
    ]
    output.finish(rows, {"out": str(out), "plan": _plan_record(plan)})


def _plan_record(plan: Extraction) -> dict[str, Any]:
    return {
        "base": str(plan.base),
        "model": str(plan.tuned),
        "modules": [{"module": unit.module, "form": unit.form, "shape": unit.weight.shape} for unit in plan.units],
        "left_out": [{"reason": reason, "tensors": names} for reason, names in plan.left_out.items()],
        "bytes_read": plan.read_bytes,
        "warnings": [str(problem) for problem in plan.pairs.findings.warnings],
        "notices": plan.pairs.findings.notices,
    }
