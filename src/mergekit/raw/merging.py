"""The job: a recipe for raw checkpoints in, a folder or a file of safetensors out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mergekit.checkpoint.finding import SAFETENSORS
from mergekit.merging import JobOptions, Progress, carry_out, carry_out_into_file
from mergekit.plan import PlanOptions
from mergekit.raw.planning import plan_raw
from mergekit.raw.selection import Matching


def is_file(out: Path) -> bool:
    """Whether an output is one file, and no folder."""
    return out.suffix == SAFETENSORS.suffix


def planning_for(out: Path, options: PlanOptions) -> PlanOptions:
    """The options with which the plan of an output is made: a file is one shard, whatever its size."""
    return replace(options, shard_bytes=0) if is_file(out) else options


def merge_raw(
    text: str,
    out: Path,
    *,
    file: str | None = None,
    options: JobOptions | None = None,
    matching: Matching | None = None,
    progress: Progress | None = None,
) -> Mapping[str, object]:
    """Merge raw checkpoints as a recipe says.

    The output appears complete, by one rename, or not at all.

    Parameters:
        text: the recipe, YAML.
        out: the folder to be made, with the weights, the recipe, the report and a model card; or a file, which ends in
            ``.safetensors``, with the weights alone.
        file: the recipe's name, for messages.
        options: see :class:`~mergekit.merging.JobOptions`.
        matching: what becomes of tensors that are not alike.
        progress: is told what happens.

    Returns:
        The report.

    Raises:
        MergekitError: see :func:`plan_raw`; or the output cannot be written, or must not be.
    """
    options = options or JobOptions()

    planning = planning_for(out, options.plan)
    carry = carry_out_into_file if is_file(out) else carry_out
    return carry(lambda: plan_raw(text, file=file, options=planning, matching=matching), out, options, progress)
