"""``mergekit moe`` and ``mergekit-moe``: build a mixture of experts out of dense models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit import __version__
from mergekit.cli.merge import (
    DANGEROUS,
    WRITTEN,
    as_elsewhere,
    cached_in,
    config_file,
    essentials,
    heed_stop,
    in_json,
    in_shards,
    on_cluster,
    on_threads,
    overwriting,
    quietly,
    read_config,
    seeded,
    streaming,
    strictly,
    unchecked,
    verbosely,
    with_card,
    within_memory,
    without_device,
)
from mergekit.cli.options import GENERAL, Command, ignored, ignored_flags, option
from mergekit.cli.output import Output

if TYPE_CHECKING:
    from mergekit.merging import JobOptions
    from mergekit.moe import Identity, MoeOptions, MoePlan

ROUTERS = "Routers"


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@click.argument("out_path", type=click.Path(path_type=Path))
@verbosely
@quietly
@in_json
@option(GENERAL, "--plan", "only_plan", is_flag=True, help="Say what would be done; run no model, and write nothing.")
@strictly
@option(
    GENERAL,
    "--check-identity",
    is_flag=True,
    help="Afterwards load the mixture and the models by transformers, in float32, and compare: with every expert the "
    "same, the mixture must say what that dense model says.",
)
@option(
    ROUTERS,
    "--device",
    metavar="NAME",
    help="Run the base on: cpu (which is the default), cuda, cuda:N, mps, or auto, for gate modes that run it.",
)
@option(ROUTERS, "--cuda/--no-cuda", help="The same as --device cuda.")
@option(ROUTERS, "--gpu-rich", is_flag=True, help="The same as --cuda.")
@option(ROUTERS, "--load-in-4bit", is_flag=True, help="Run the base in 4 bits, by bitsandbytes.")
@option(ROUTERS, "--load-in-8bit", is_flag=True, help="Run the base in 8 bits, by bitsandbytes.")
@option(
    ROUTERS,
    "--gate-cache/--no-gate-cache",
    default=True,
    help="Keep hidden states of prompts in the user's cache folder, and take them from there (which is the default).",
)
@overwriting
@unchecked
@option(
    DANGEROUS,
    "--i-understand-this-is-not-useful-without-training",
    "same_experts",
    is_flag=True,
    help="Let all experts be one model, though routers are made of prompts.",
)
@option(
    DANGEROUS,
    "--allow-inexact",
    is_flag=True,
    help="Write the architecture that the recipe names even if it computes otherwise than the base; for a mixture that "
    "is to be trained.",
)
@cached_in
@streaming
@seeded
@on_cluster
@on_threads
@within_memory
@in_shards
@option(
    WRITTEN,
    "--fused/--per-expert",
    help="Store all experts of a layer as one tensor each, as transformers 5 holds them; or each expert on its own, "
    "which all loaders read (the default).",
)
@option(
    WRITTEN,
    "--copy-tokenizer/--no-copy-tokenizer",
    default=True,
    help="Take over the tokenizer's files (which is the default).",
)
@with_card
@as_elsewhere
@without_device
@ignored("--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings", why="the output has the base's vocabulary")
@click.version_option(__version__, prog_name="mergekit", message="%(prog)s %(version)s")
@click.help_option("-h", "--help")
def moe(config_file: str, out_path: Path, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Build a mixture of experts as the recipe CONFIG_FILE says: a new model folder OUT_PATH.

    Attention, norms and embeddings are those of the base model; each expert gives its MLPs; routers are made of
    prompts, or are random. The output is of the nearest family that computes as the base does: Mixtral, Qwen2 MoE,
    Qwen3 MoE, DeepSeek MoE, Granite MoE or OLMoE; with -v it is said why it is none of the others.
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        output.note(ignored_flags())
        heed_stop()
        text, name = read_config(config_file)
        own = [flags.pop(key) for key in ("only_plan", "check_identity")]
        options, made = _options(flags, output)
        build(text, name, out_path, options, made, output, *own)


def _options(flags: dict[str, Any], output: Output) -> tuple[JobOptions, MoeOptions]:
    from mergekit.api.options import MergeOptions, carrying_out
    from mergekit.moe import GateOptions, MoeOptions

    device, cuda = flags.pop("device"), flags.pop("cuda") | flags.pop("gpu_rich")
    four, eight = flags.pop("load_in_4bit"), flags.pop("load_in_8bit")
    gates = GateOptions(
        device or ("cuda" if cuda else None), 4 if four else 8 if eight else None, flags.pop("gate_cache")
    )
    moe = MoeOptions(
        fused=flags.pop("fused"),
        same_experts=flags.pop("same_experts"),
        inexact=flags.pop("allow_inexact"),
        explain=output.verbose,
        gates=gates,
    )
    return carrying_out(MergeOptions(transformers_cache=flags.pop("cache"), **flags), output.drawing), moe


def build(
    text: str,
    name: str,
    out: Path,
    options: JobOptions,
    moe: MoeOptions,
    output: Output,
    only_plan: bool = False,
    check: bool = False,
) -> None:
    """Build a mixture, and say what came of it.

    Parameters:
        text: the recipe, YAML.
        name: the recipe's name, for messages.
        out: the folder to be made.
        options: of the job.
        moe: of the mixture.
        output: where it is said.
        only_plan: only say what would be done.
        check: compare it with the dense models afterwards.
    """
    from dataclasses import replace

    from mergekit.cli.planned import show_plan
    from mergekit.cli.progress import Narrator
    from mergekit.moe import build_moe, check_identity, plan_moe

    if only_plan:
        made = plan_moe(text, file=name, options=options.plan, moe=replace(moe, gates=None))
        show_plan(made.plan, out, output)
        return
    with Narrator(output) as narrator:
        report, made = build_moe(text, out, file=name, options=options, moe=moe, progress=narrator)
    identity = check_identity(out, made) if check else None
    _tell(out, report, made, identity, output)
    if identity is not None:
        _refuse_difference(out, identity)


def _tell(out: Path, report: Mapping[str, Any], made: MoePlan, identity: Identity | None, output: Output) -> None:
    from mergekit.report.record import headline

    rows = [*headline(report), ("architecture", made.family.architecture)]
    record: dict[str, Any] = {"out": str(out), "report": essentials(report), "architecture": made.family.architecture}
    if identity is not None:
        rows += [("compared", text) for text in identity.compared]
        rows += [("not compared", text) for text in identity.left_out]
        if identity.difference is not None:
            state = "the same but for rounding" if identity.holds else "NOT THE SAME"
            rows.append(("identity", f"{state}: logits differ by {identity.difference:.1e} of the greatest"))
        record["identity"] = {
            "compared": identity.compared,
            "left_out": identity.left_out,
            "difference": identity.difference,
            "holds": identity.holds,
        }
    if identity is None or identity.holds:
        output.finish([*rows, ("output", click.format_filename(out))], record)


def _refuse_difference(out: Path, identity: Identity) -> None:
    from mergekit.errors import VerificationError

    if not identity.holds:
        raise VerificationError(
            f"the mixture is not its models: logits differ by {identity.difference:.1e} of the greatest",
            place=str(out),
            expected="; ".join(identity.compared),
            hint="`mergekit verify` on the output, which was left there",
        )
