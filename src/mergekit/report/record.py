"""The merge report: what went in, what was done to it and what came out, as JSON.

::

    format, mergekit, machine, method, recipe_sha256, seed, seconds
    device     {name, version, devices}              what computed: `kernels` or `torch cuda`; devices only of torch
    method_file {file, sha256}                       only of a method in a Python file that the recipe names
    options    {shard_bytes, copy_tokenizer, crop_vocabulary, fuse_experts}, or {shard_bytes, raw: {names, integers}}
    parents    [{model, role, folder, files: [{name, bytes, header_sha256}], adapter: {folder, files, config_sha256}}]
    totals     {tensors, parameters, bytes_read, bytes_written, shards}
    shards     [{file, bytes, header_sha256}]
    settings   [{method, based, parameters}]         each combination once
    tensors    [{name, dtype, shape, sources: [{model, tensor}], settings, grain, norm, relative_distance, non_finite,
                 checksum}]
    left_over  [{model, reason, tensors}]
    vocabularies [{model, kind, equal, tokens, ...}] as `mergekit tokens` tells; none if tokenizer files are the same
    rules      [{rule, tensors}]                     output tensors that some models lack or have in another shape
    warnings   [{what, place, expected, hint}]
    notices    [text]

`model` is an index in `parents`, `settings` one in `settings`. The first source of a tensor is its base if the settings
say `based`; values per model then belong to the sources after it. `relative_distance` is that of the output to its
first source, as a share of the norm of that source; null where that norm is 0. Integers have neither norm nor distance.
`grain` is how many entries were added up before their sums were added up exactly. `checksum` is that of the tensor's
bytes, as :func:`mergekit.kernels.checksum.checksum` defines it, in 16 hexadecimal digits.
Apart from `seconds`, the same merge gives the same report on the same `machine`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from mergekit import __version__
from mergekit.adapters import CONFIG, Adapter
from mergekit.checkpoint.hub import Remote
from mergekit.errors import Problem
from mergekit.methods import Method, Parameter
from mergekit.plan import Model, Plan, TensorTask
from mergekit.plan.fingerprint import header_hash, recipe_hash
from mergekit.plan.methods import method_file
from mergekit.plan.tensors import MERGEABLE
from mergekit.report.roles import bases, merged

FORMAT = 1
"""Version of the report's structure."""


class Measured(Protocol):
    """What the engine tells about a finished tensor: see :class:`mergekit.engine.Outcome`."""

    @property
    def task(self) -> int:
        """Index in the plan."""

    @property
    def norm(self) -> float:
        """Euclidean norm of the output."""

    @property
    def distance(self) -> float:
        """Norm of its difference from the first operand."""

    @property
    def reference(self) -> float:
        """Norm of that operand."""

    @property
    def broken(self) -> int:
        """Entries that are infinite or not a number."""

    @property
    def checksum(self) -> int:
        """Of its bytes, unsigned."""


def merge_report(
    plan: Plan,
    outcomes: Iterable[Measured],
    seconds: Mapping[str, float],
    device: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Contents of merge_report.json.

    Parameters:
        plan: the merge.
        outcomes: exactly one for each task of the plan, in any order.
        seconds: duration of each phase.
        device: what computed; see :meth:`mergekit.engine.Compute.record`.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.task)
    if [outcome.task for outcome in ordered] != list(range(len(plan.tasks))):
        raise AssertionError(f"{len(plan.tasks)} tasks need one outcome each, there are {len(ordered)} outcomes")
    settings, tensors = _tensors(plan.tasks, ordered)
    report = {
        "format": FORMAT,
        "mergekit": __version__,
        "machine": machine(),
        **({"device": device} if device else {}),
        "method": plan.method.name,
        **({"method_file": file} if (file := method_file(plan.method)) else {}),
        "recipe_sha256": recipe_hash(plan.recipe.text),
        "seed": plan.seed,
        "options": plan.options,
        "seconds": {phase: round(duration, 3) for phase, duration in seconds.items()},
        "parents": [_parent(index, model, plan) for index, model in enumerate(plan.models)],
        "totals": _totals(plan),
        "shards": [
            # The hash is that of `header_hash`: without the 8 bytes of length.
            {"file": shard.file, "bytes": shard.nbytes, "header_sha256": hashlib.sha256(shard.head[8:]).hexdigest()}
            for shard in plan.shards
        ],
        "settings": settings,
        "tensors": tensors,
        "left_over": [
            {"model": entry.model, "reason": entry.reason, "tensors": entry.tensors} for entry in plan.leftovers
        ],
        "vocabularies": [{"model": index, **own.as_json()} for index, own in plan.alignments.items()],
        "rules": [{"rule": entry.rule, "tensors": entry.tensors} for entry in plan.treated],
        "warnings": [_warning(problem) for problem in plan.findings.warnings],
        "notices": plan.findings.notices,
    }
    return {key: _plain(value) for key, value in report.items()}


def report_text(report: Mapping[str, Any]) -> str:
    """A report as it is written: a line for each entry of its lists, so that reports can be compared line by line.

    Example:
        >>> print(report_text({"format": 1, "settings": [{"based": True}, {"based": False}], "notices": []}), end="")
        {
         "format": 1,
         "settings": [
          {"based": true},
          {"based": false}
         ],
         "notices": []
        }
    """
    fields = (f" {json.dumps(key)}: {_field_text(value)}" for key, value in report.items())
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _field_text(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in value) + "\n ]"
    return json.dumps(value, ensure_ascii=False)


def machine() -> str:
    """What the order of additions inside a sum depends on: the processor and the compiled kernels."""
    import llvmlite.binding as llvm

    from mergekit.kernels.compiled import fingerprint

    return f"{llvm.get_host_cpu_name()}-{fingerprint()}"


def _plain(value: Any) -> Any:
    """A value in the types of JSON, which has no NaN, no infinity and no half of a surrogate pair."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _parent(index: int, model: Model, plan: Plan) -> dict[str, object]:
    donor = index == 0 and "config.json" in plan.texts
    roles = {"base": index in bases(plan), "donor": donor, "merged": index in merged(plan)}
    return {
        "model": str(model.ref),
        "role": [role for role, held in roles.items() if held],
        "folder": str(model.checkpoint.root.resolve()),
        "files": [_file(file, model.checkpoint.root, model.checkpoint.remote) for file in model.checkpoint.shards],
        **({"adapter": _adapter(model.adapter)} if model.adapter else {}),
    }


def _adapter(adapter: Adapter) -> dict[str, object]:
    """What was applied to the weights of a parent, whose role is that of both."""
    return {
        "folder": str(adapter.root.resolve()),
        "files": [_file(adapter.file, adapter.root, {})],
        "config_sha256": hashlib.sha256((adapter.root / CONFIG).read_bytes()).hexdigest(),
    }


def _file(file: Path, root: Path, remote: Mapping[Path, Remote]) -> dict[str, object]:
    name = file.relative_to(root).as_posix() if file != root else file.name
    if file in remote:
        return {"name": name, "bytes": remote[file].nbytes, "header_sha256": remote[file].header_sha256}
    return {"name": name, "bytes": file.stat().st_size, "header_sha256": header_hash(file)}


def _totals(plan: Plan) -> dict[str, int]:
    return {
        "tensors": len(plan.tasks),
        "parameters": sum(task.out.count for task in plan.tasks),
        "bytes_read": plan.read_bytes,
        "bytes_written": plan.write_bytes,
        "shards": len(plan.shards),
    }


def _tensors(tasks: Sequence[TensorTask], outcomes: Sequence[Measured]) -> tuple[list[object], list[dict[str, object]]]:
    """The table of settings, and the tensors that refer to it."""
    parameters: dict[type[Method], tuple[Parameter, ...]] = {}
    known: dict[tuple[object, ...], int] = {}
    table: list[object] = []
    tensors = []
    for task, outcome in zip(tasks, outcomes, strict=True):
        method = type(task.method)
        if method not in parameters:
            parameters[method] = method.parameters()
        own = parameters[method]
        values = tuple(getattr(task.method, each.field) for each in own)
        key = (method, task.based, values)
        if key not in known:
            known[key] = len(table)
            named = {each.name: _plain(value) for each, value in zip(own, values, strict=True)}
            table.append({"method": method.name, "based": task.based, "parameters": named})
        tensors.append(_tensor(task, outcome, known[key]))
    return table, tensors


def _tensor(task: TensorTask, outcome: Measured, settings: int) -> dict[str, object]:
    measured = task.out.dtype.name in MERGEABLE
    return {
        "name": task.out.name,
        "dtype": task.out.dtype.name,
        "shape": task.out.shape,
        "sources": [{"model": operand.model, "tensor": operand.view.spec.name} for operand in task.operands],
        "settings": settings,
        "grain": task.target.grain,
        "norm": outcome.norm if measured else None,
        "relative_distance": outcome.distance / outcome.reference if outcome.reference else None,
        "non_finite": outcome.broken,
        "checksum": f"{outcome.checksum:016x}",
    }


def _warning(problem: Problem) -> dict[str, str]:
    lines = {
        "what": problem.what,
        "place": str(problem.place or ""),
        "expected": problem.expected or "",
        "hint": problem.hint or "",
    }
    return {label: text for label, text in lines.items() if text}


def headline(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a user wants to know after a merge, as pairs of label and text.

    Parameters:
        report: as :func:`merge_report` returns it.
    """
    totals = report["totals"]
    return [
        ("tensors", f"{totals['tensors']:,} with {totals['parameters']:,} parameters"),
        ("read", in_units(totals["bytes_read"])),
        ("written", f"{in_units(totals['bytes_written'])} in {_counted(totals['shards'], 'file')}"),
        ("time", f"{sum(report['seconds'].values()):.1f} s"),
        *_distance(report),
        *_left_over(report["left_over"]),
    ]


def _distance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How far the tensors that have a base are from it."""
    based = [entry for entry in report["tensors"] if report["settings"][entry["settings"]]["based"]]
    known = {entry["name"]: entry["relative_distance"] for entry in based if entry["relative_distance"] is not None}
    if not known:
        return []
    farthest = max(known, key=lambda name: known[name])
    return [("distance to base", f"{fmean(known.values()):.2%} on average, at most {known[farthest]:.2%} ({farthest})")]


def _left_over(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry["reason"]] = counts.get(entry["reason"], 0) + len(entry["tensors"])
    return [("left over", f"{_counted(count, 'tensor')}: {reason}") for reason, count in counts.items()]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_units(nbytes: int) -> str:
    """A size in decimal units.

    Example:
        >>> in_units(1_234_567)
        '1.23 MB'
    """
    size, units = float(nbytes), ["bytes", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{nbytes} bytes" if units[0] == "bytes" else f"{size:,.2f} {units[0]}"
