"""``mergekit tokensurgeon`` and ``mergekit-tokensurgeon``: give a model another model's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit import __version__
from mergekit.cli.merge import (
    WRITTEN,
    as_elsewhere,
    cached_in,
    heed_stop,
    in_json,
    in_shards,
    on_cluster,
    on_device,
    on_threads,
    overwriting,
    quietly,
    seeded,
    streaming,
    strictly,
    tell,
    unchecked,
    verbosely,
    with_card,
    within_memory,
)
from mergekit.cli.options import GENERAL, Command, accepted, ignored, ignored_flags, option
from mergekit.cli.output import Output, print_json
from mergekit.cli.tables import table

if TYPE_CHECKING:
    from mergekit.surgery import Settings

METHODS = (
    "omp",
    "common_interpolation",
    "subword",
    "landmark_pca",
    "stb",
    "mp_rope",
    "mean",
    "john_hewitt",
    "zero",
    "randn",
)
_WHERE = click.Choice(["lm_head", "embed", "yes", "no"])
APPROXIMATING, MATCHING = "Approximation of new rows", "Tokens that are taken for the same"
_LONGEST = 24  # characters of a token in a table


def _methods(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    chosen = METHODS if value == "all" else tuple(name.strip() for name in value.split(","))
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise click.BadParameter(f"unknown method `{unknown[0]}`; known are {', '.join(METHODS)}", ctx, param)
    return tuple(dict.fromkeys(chosen))


def _token_map(ctx: click.Context, param: click.Parameter, value: Path | None) -> Mapping[str, str]:
    import yaml

    if value is None:
        return {}
    try:
        found = yaml.safe_load(value.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"not YAML or JSON: {error}", ctx, param) from error
    if not isinstance(found, dict) or not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise click.BadParameter("expected a mapping of the donor's tokens to the model's, both text", ctx, param)
    return found


_approximating = accepted(
    option(
        APPROXIMATING,
        "-a",
        "--approximation-method",
        metavar="METHOD",
        type=click.Choice(METHODS),
        default="omp",
        help="How rows are found for tokens that MODEL does not have: one of those above; omp if not given.",
    ),
    option(
        APPROXIMATING,
        "-k",
        "--k",
        type=click.IntRange(min=1),
        default=64,
        help="Neighbours, or terms of a sparse sum; 64 if not given.",
    ),
    option(
        APPROXIMATING,
        "-c/-nc",
        "--cosine-similarity/--no-cosine-similarity",
        help="common_interpolation: nearest by angle, not by distance.",
    ),
    option(
        APPROXIMATING,
        "-w",
        "--weight-scheme",
        type=click.Choice(["distance_proportional", "barycentric", "least_squares"]),
        default="distance_proportional",
        help="common_interpolation: how neighbours are weighted.",
    ),
    option(
        APPROXIMATING,
        "-s",
        "--subword-method",
        type=click.Choice(["mean", "sum", "weighted_mean", "first_last"]),
        default="mean",
        help="subword: how the rows of the pieces become one.",
    ),
    option(
        APPROXIMATING,
        "--batch-size",
        type=int,
        default=512,
        help="New tokens at a time, fewer where memory asks for it; 0 for as many as fit.",
    ),
    option(APPROXIMATING, "-nvn", "--new-vocab-noise", type=float, help="Add normal noise of this size to new rows."),
    option(APPROXIMATING, "-nvs", "--new-vocab-scale", type=float, help="Multiply new rows by this, after the noise."),
    option(
        APPROXIMATING,
        "--held-out",
        metavar="N",
        type=click.IntRange(min=0),
        default=256,
        help="Try the method on so many tokens that both models have, a fifth of them at most; 256 if not given.",
    ),
    option(
        APPROXIMATING,
        "--compare",
        metavar="METHODS",
        callback=_methods,
        help="Try several methods on the tokens held out, and write nothing: names with commas between, or all.",
    ),
)
_matching = accepted(
    option(
        MATCHING,
        "-pm",
        "--prefix-match",
        type=_WHERE,
        default="no",
        help="In these matrices a token gets the row of the longest token of MODEL that it begins with.",
    ),
    option(
        MATCHING,
        "-bm",
        "--byte-match",
        type=_WHERE,
        default="no",
        help="In these matrices the token of an ASCII byte, <0x41>, and that of its character are the same.",
    ),
    option(
        MATCHING,
        "--token-map",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_token_map,
        help="YAML or JSON: tokens of DONOR, each with the token of MODEL whose row it gets.",
    ),
    option(
        MATCHING,
        "--magikarp/--no-magikarp",
        help="Do not rely on tokens that seem undertrained: such rows are approximated, or zeros.",
    ),
)
_writing = accepted(
    option(
        WRITTEN,
        "--donor-padding/--no-donor-padding",
        help="Write as many rows as DONOR's matrix has, if those are more than its tokens.",
    ),
    option(
        WRITTEN,
        "--pad-to-multiple-of",
        metavar="N",
        type=click.IntRange(min=1),
        help="Write a multiple of so many rows; those without a token are the mean of the others.",
    ),
    option(
        WRITTEN,
        "--chat-template",
        metavar="TEMPLATE",
        default="donor",
        help="Chat template of the output: donor (which is the default), model, or one that recipes may name.",
    ),
)
_of_merges = accepted(
    ignored("--copy-tokenizer/--no-copy-tokenizer", why="the tokenizer of DONOR is always written"),
    ignored(
        "--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings", why="the vocabulary is that of DONOR, whole"
    ),
)


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("model")
@click.argument("donor")
@click.argument("out_path", type=click.Path(path_type=Path), required=False)
@verbosely
@quietly
@in_json
@option(GENERAL, "--plan", "only_plan", is_flag=True, help="Say what would be done, and write nothing.")
@strictly
@_approximating
@_matching
@overwriting
@unchecked
@cached_in
@streaming
@seeded
@on_device
@on_cluster
@on_threads
@within_memory
@in_shards
@_writing
@with_card
@as_elsewhere
@_of_merges
@click.version_option(__version__, prog_name="mergekit", message="%(prog)s %(version)s")
@click.help_option("-h", "--help")
def tokensurgeon(
    model: str, donor: str, out_path: Path | None, verbose: int, quiet: bool, as_json: bool, **flags: Any
) -> None:
    """Give MODEL the tokenizer of DONOR, and write it as the model folder OUT_PATH. Nothing is trained.

    Tokens that both have keep MODEL's rows, bit by bit; tokens with the same role, such as the end of a text, are the
    same. For all others rows are approximated. A note says how many there are of each, a table how good the
    approximation is on known tokens that were held out.

    \b
    omp                   sparse sum of shared tokens that gives DONOR's row
    common_interpolation  weighted mean of the nearest shared tokens
    subword               rows of the pieces that MODEL's tokenizer cuts a token into
    landmark_pca          principal axes of both models, turned onto each other
    stb                   a basis of sparse sums that both models have
    mp_rope               sparse sum of shared tokens, each rotated as by its position
    mean, zero, randn     the mean of MODEL's rows, zeros, normal numbers
    john_hewitt           draws from the normal distribution of MODEL's rows
    """  # noqa: D301  (click keeps the lines of a paragraph that begins with a backspace)
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        if out_path is None and not flags["compare"]:
            raise click.UsageError("Missing argument 'OUT_PATH'.")
        output.note(ignored_flags())
        _operate(model, donor, out_path, flags, output)


def _operate(model: str, donor: str, out: Path | None, flags: dict[str, Any], output: Output) -> None:
    from mergekit.api.options import MergeOptions, carrying_out
    from mergekit.surgery import compare, plan_transplant, transplant

    heed_stop()
    methods, only_plan = flags.pop("compare"), flags.pop("only_plan")
    settings, template = _settings(flags), flags.pop("chat_template")
    options = carrying_out(MergeOptions(transformers_cache=flags.pop("cache"), **flags), output.drawing)
    watch = partial(_watching, output)
    if methods:
        if out is not None:
            output.note([f"{click.format_filename(out)} is not written: `--compare` only tries methods"])
        found = compare(
            model, donor, methods, settings=settings, options=options.plan, device=options.device, watch=watch
        )
        _show([{**each.as_json(), "seconds": round(each.seconds, 3)} for each in found], output)
        return
    assert out is not None, "click asks for it"
    if only_plan:
        _show_plan(plan_transplant(model, donor, settings, options.plan, chat_template=template), out, output)
        return
    reports: list[Mapping[str, Any]] = []

    def job(progress: Any) -> Mapping[str, Any]:
        made = transplant(
            model,
            donor,
            out,
            settings=settings,
            options=options,
            chat_template=template,
            progress=progress,
            watch=watch,
        )
        reports.append(made)
        return made

    tell(out, output, job)
    held = [each["held_out"] for each in reports[0]["transplant"]["matrices"].values() if each["held_out"]]
    if held and not (output.as_json or output.quiet):
        click.echo("\n".join(["", *_lines(held)]))


def _settings(flags: dict[str, Any]) -> Settings:
    """What is chosen about the transplant; it is taken out of the flags."""
    from dataclasses import fields

    from mergekit.surgery import Settings

    names = [each.name for each in fields(Settings) if each.name in flags]
    return Settings(**{name: flags.pop(name) for name in names})


@contextmanager
def _watching(output: Output, doing: str, nbytes: int) -> Iterator[Callable[[int], None]]:
    from mergekit.cli.progress import Narrator

    with Narrator(output) as narrator:
        narrator.begin(doing, nbytes, ())
        yield narrator.advance


def _show_plan(found: Any, out: Path, output: Output) -> None:
    from mergekit.cli.planned import show_plan
    from mergekit.surgery.transplanting import told

    for name, counts in found.counts.items():
        found.plan.findings.notice(f"`{name}`: {told(counts)}")
    show_plan(found.plan, out, output)


def _show(qualities: Sequence[Mapping[str, Any]], output: Output) -> None:
    if output.as_json:
        print_json({"ok": True, "methods": list(qualities)})
    else:
        click.echo("\n".join(_lines(qualities)))


_COLUMNS = {
    "cosine": "cosine",
    "median": "median",
    "low": "lowest 10%",
    "relative_error": "error",
    "length": "length",
    "seconds": "seconds",
}


def _lines(qualities: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How near rows come to the right ones, matrix by matrix, the best method first."""
    for name in dict.fromkeys(each["tensor"] for each in qualities):
        own = sorted((each for each in qualities if each["tensor"] == name), key=lambda each: -(each["cosine"] or -2.0))
        yield f"{name}: {own[0]['tokens']:,} known tokens, held out and approximated"
        columns = [column for column in _COLUMNS if column in own[0]]
        rows = [[each["method"], *(_number(each[column]) for column in columns)] for each in own]
        yield from table(("method", *(_COLUMNS[column] for column in columns)), rows)
        worst = ", ".join(repr(token["token"][:_LONGEST]) for token in own[0]["worst"])
        yield f"worst of {own[0]['method']}: {worst}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
