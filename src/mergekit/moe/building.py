"""The job: a mixture recipe in, a model folder out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergekit.merging import JobOptions, Progress, carry_out
from mergekit.moe.planning import MoeOptions, MoePlan, plan_moe
from mergekit.plan import Plan

__all__ = ["MoeOptions", "build_moe"]


def build_moe(
    text: str,
    out: Path,
    *,
    file: str | None = None,
    options: JobOptions | None = None,
    moe: MoeOptions | None = None,
    progress: Progress | None = None,
) -> tuple[Mapping[str, object], MoePlan]:
    """Build the mixture that a recipe describes in a new model folder.

    The folder appears complete, by one rename, or not at all.

    Parameters:
        text: the recipe, YAML.
        out: the folder to be made.
        file: the recipe's name, for messages.
        options: see :class:`~mergekit.merging.JobOptions`.
        moe: see :class:`MoeOptions`.
        progress: is told what happens.

    Returns:
        The report, which is also written to ``merge_report.json``; and the plan.

    Raises:
        MergekitError: see :func:`plan_moe`; or the output cannot be written, or must not be.
    """
    options = options or JobOptions()
    made: list[MoePlan] = []

    def planned() -> Plan:
        made.append(plan_moe(text, file=file, options=options.plan, moe=moe))
        return made[0].plan

    report = carry_out(planned, out, options, progress)
    return report, made[0]
