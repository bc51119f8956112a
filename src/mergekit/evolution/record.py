"""What a search leaves in its folder: the best recipe, the history, and the front."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit.checkpoint.writing import reported
from mergekit.evolution.evaluation import Judged
from mergekit.evolution.search import Found

if TYPE_CHECKING:
    from mergekit.evolution.trials import Entry

BEST, HISTORY, TABLE, FRONT = "best_config.yaml", "history.json", "history.csv", "front"


def write_records(found: Found, storage: Path) -> None:
    """Write the best recipe and the history; each file appears complete.

    Parameters:
        found: what is known.
        storage: folder of the search.

    Raises:
        OutputError: a file cannot be written.
    """
    if any(entry.counts for entry in found.entries):
        replace_text(storage / BEST, _headed(found, found.best))
    replace_text(storage / HISTORY, json.dumps(history(found), indent=1, allow_nan=False) + "\n")
    replace_text(storage / TABLE, "".join(_lines(found)))
    by_number = {entry.number: entry for entry in found.entries}
    for number in found.front:
        replace_text(storage / FRONT / f"trial_{number}.yaml", _headed(found, by_number[number]))
    for file in (storage / FRONT).glob("trial_*.yaml"):
        if file.stem not in {f"trial_{number}" for number in found.front}:
            file.unlink()


def replace_text(file: Path, text: str) -> None:
    """Write a file that is never seen half written.

    Raises:
        OutputError: it cannot be written.
    """
    partial = file.with_name(file.name + ".partial")
    with reported(file, len(text)):
        file.parent.mkdir(exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="")
        partial.replace(file)


def _headed(found: Found, entry: Entry) -> str:
    values = ", ".join(f"{name} {value:.6g}" for name, value in measured(found, entry.judged).items())
    return f"# Found by mergekit-evolve: trial {entry.number}, {values}\n{found.recipe(entry)}"


def measured(found: Found, judged: Judged) -> dict[str, float]:
    """What was measured, by the names of the objectives."""
    names = [objective.name for objective in found.objectives]
    return dict(zip(names, judged.values, strict=False))


def history(found: Found) -> dict[str, object]:
    """All trials as one JSON object."""
    counting = [entry for entry in found.entries if entry.counts]
    return {
        "objectives": [{"name": each.name, "weight": each.weight} for each in found.objectives],
        "best": found.best.number if counting else None,
        "front": list(found.front),
        "importance": dict(found.importance),
        "trials": [_record(found, entry) for entry in found.entries],
    }


def _record(found: Found, entry: Entry) -> Mapping[str, object]:
    score = entry.judged.score
    return {
        "trial": entry.number,
        "state": "failed" if entry.judged.failure else "pruned" if entry.pruned else "complete",
        "score": score if math.isfinite(score) else None,
        "objectives": measured(found, entry.judged),
        "parameters": {gene.name: value for gene, value in zip(found.genome.genes, entry.values, strict=True)},
        "seconds": round(entry.judged.seconds, 3),
        "same_as": entry.twin,
        "failure": entry.judged.failure,
    }


def _lines(found: Found) -> Iterator[str]:
    """The history as a table of comma-separated values."""
    objectives, genes = [each.name for each in found.objectives], [gene.name for gene in found.genome.genes]
    yield _row(["trial", "state", "score", *objectives, *genes, "seconds", "same_as", "failure"])
    for entry in found.entries:
        record = _record(found, entry)
        values = measured(found, entry.judged)
        left = [record["trial"], record["state"], record["score"], *(values.get(name) for name in objectives)]
        yield _row([*left, *entry.values, record["seconds"], record["same_as"], record["failure"]])


def _row(cells: list[object] | list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(["" if cell is None else cell for cell in cells])
    return line.getvalue()
