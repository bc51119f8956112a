"""What an extraction found, for merge_report.json and for tables.

::

    format, mergekit, made_by
    base, model
    rank         {max, epsilon, energy}              what was asked for
    modules      [{module, part, held, rank, energy, relative_error, norm, exact}]
    parts        [{part, modules, rank: [low, high], energy, relative_error}]
    totals       {modules, changed, energy, bytes}
    left_out     [{reason, tensors}]
    resized      [rows of the base, rows of the fine-tune], or null
    check        {relative_error, same_entries}      only if it was asked for
    warnings, notices
    seconds

`energy` is the share of the squared norm of the difference that the adapter holds, `relative_error` the norm of what it
misses as a share of that of the difference, both before factors are rounded to their dtype. By `held`, "products" have
a rank, "rows" and "whole" are exact, and "nothing" are the same in both models, or below epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergekit import __version__
from mergekit.lora.measuring import Finding
from mergekit.lora.settings import Contents

if TYPE_CHECKING:
    from mergekit.lora.combining import Merged
    from mergekit.lora.extraction import Extraction
    from mergekit.lora.merging import AdapterMerge


def extraction_record(plan: Extraction, findings: Sequence[Finding], contents: Contents, nbytes: int) -> dict[str, Any]:
    """The report of an extraction.

    Parameters:
        plan: what was asked for.
        findings: about every module.
        contents: what the adapter holds.
        nbytes: of its tensors.
    """
    goal = plan.wish.goal
    noted = plan.pairs.findings
    return {
        "format": 1,
        "mergekit": __version__,
        "made_by": "extract-lora",
        "base": str(plan.base),
        "model": str(plan.tuned),
        "rank": {"max": goal.max_rank, "epsilon": goal.epsilon, "energy": goal.energy},
        "modules": [_module(found) for found in findings],
        "parts": list(_parts(findings)),
        "totals": {**_sums(findings), "rank": contents.rank or max(contents.ranks.values()), "bytes": nbytes},
        "left_out": [{"reason": reason, "tensors": list(names)} for reason, names in plan.left_out.items()],
        "resized": list(plan.resized) if plan.resized else None,
        "warnings": [str(problem) for problem in noted.warnings],
        "notices": list(noted.notices),
    }


def _module(found: Finding) -> dict[str, Any]:
    return {
        "module": found.unit.module,
        "part": found.unit.weight.part,
        "held": found.held,
        "rank": found.rank or None,
        "energy": _rounded(found.energy),
        "relative_error": _rounded(_relative([found])),
        "norm": math.sqrt(found.norm),
        "exact": found.exact,
    }


def _parts(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The modules that changed, by what they are for."""
    parts: dict[str, list[Finding]] = {}
    for found in findings:
        if found.held != "nothing":
            parts.setdefault(found.unit.weight.part, []).append(found)
    return [{"part": part, **_sums(own), "rank": _ranks(own)} for part, own in parts.items()]


def _ranks(findings: Sequence[Finding]) -> list[int] | None:
    ranks = [found.rank for found in findings if found.held == "products"]
    return [min(ranks), max(ranks)] if ranks else None


def _sums(findings: Sequence[Finding]) -> dict[str, Any]:
    norm, missed = (math.fsum(getattr(found, name) for found in findings) for name in ("norm", "missed"))
    changed = [found for found in findings if found.held != "nothing"]
    return {
        "modules": len(findings),
        "changed": len(changed),
        "energy": _rounded(1 - missed / norm if norm else 1.0),
        "relative_error": _rounded(_relative(findings)),
    }


def _relative(findings: Sequence[Finding]) -> float:
    norm, missed = (math.fsum(getattr(found, name) for found in findings) for name in ("norm", "missed"))
    return math.sqrt(max(0.0, missed) / norm) if norm else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def merge_record(plan: AdapterMerge, merged: Sequence[Merged], nbytes: int) -> dict[str, Any]:
    """The report of a merge of adapters: the rank of every module and what is left of it at this rank.

    Parameters:
        plan: what was asked for.
        merged: the modules.
        nbytes: of the output's tensors.
    """
    ranks = [one.rank for one in merged if one.rank]
    return {
        "format": 1,
        "mergekit": __version__,
        "made_by": "merge-adapters",
        "method": plan.method.name,
        "exact": plan.exact,
        "adapters": [
            {"adapter": member.name, "base": member.base, "modules": len(member.factors)} for member in plan.members
        ],
        "modules": [
            {"module": one.module, "rank": one.rank, "stacked": one.stacked, "energy": _rounded(one.kept)}
            for one in merged
        ],
        "totals": {
            "modules": len(merged),
            "rank": [min(ranks), max(ranks)],
            "energy": _rounded(min(one.kept for one in merged)),
            "bytes": nbytes,
        },
        "seed": plan.seed,
        "warnings": [str(problem) for problem in plan.findings.warnings],
        "notices": list(plan.findings.notices),
    }
