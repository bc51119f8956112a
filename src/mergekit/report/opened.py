"""A model folder as somebody finds it: what can be read of it, and why the rest cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit.checkpoint import Stored, open_checkpoint, read_header
from mergekit.checkpoint.finding import SAFETENSORS, Weights, find_weights
from mergekit.checkpoint.folder import read_tensors
from mergekit.errors import CheckpointError, MissingModelError, Problem
from mergekit.layout import Layout, read_layout

REPORT = "merge_report.json"
"""The file in which a merge says what it did."""

_CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Folder:
    """What of a folder can be read.

    Parameters:
        root: the folder, or the one file that there is.
        tensors: all tensors of all files whose headers can be read.
        config: contents of config.json; empty if there is none.
        layout: what both say the model is.
        problems: why a loader would stumble.
        remarks: what it would pass over.
        raw: whether these are weights without a model around them.
    """

    root: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, object]
    layout: Layout
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]
    raw: bool

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(stored.spec.nbytes for stored in self.tensors.values())

    @property
    def files(self) -> dict[str, Path]:
        """The files whose headers can be read, by name."""
        files = {stored.extent.file for stored in self.tensors.values()}
        return {file.relative_to(self.root).as_posix() or file.name: file for file in sorted(files)}


def open_folder(root: Path, raw: bool) -> Folder:
    """Open a folder as a loader would; if that fails, take what there is.

    Parameters:
        root: the folder, or a single file of safetensors or GGUF.
        raw: whether it is one of weights without config.json.

    Raises:
        MissingModelError: there is no such folder.
    """
    tensors: dict[str, Stored] = {}
    config: Mapping[str, object] = {}
    remarks: tuple[str, ...] = ()
    try:
        if raw:
            tensors, passed_over, plain = _raw_tensors(root)
        else:
            checkpoint = open_checkpoint(root)
            tensors, config, passed_over = dict(checkpoint.tensors), checkpoint.config, checkpoint.remarks
            plain = all(shard.suffix == SAFETENSORS.suffix for shard in checkpoint.shards)
        # A merge leaves nothing unused; pickles and GGUF files of others hold what loaders pass over.
        remarks = () if plain or (root / REPORT).is_file() else tuple(passed_over)
        problems = [Problem(remark, str(root)) for remark in passed_over if not remarks]
    except MissingModelError:
        raise
    except CheckpointError as error:
        problems = [error.problem, *_salvage(root, tensors)]
        parsed = parsed_json(root / _CONFIG)
        config = parsed if isinstance(parsed, dict) else {}
    layout = read_layout({name: stored.spec.shape for name, stored in tensors.items()}, config)
    return Folder(root, tensors, config, layout, tuple(problems), remarks, raw)


def _raw_tensors(root: Path) -> tuple[dict[str, Stored], Sequence[str], bool]:
    if root.is_file():
        return {stored.spec.name: stored for stored in read_header(root).tensors}, (), True
    remarks: list[str] = []
    weights = find_weights(root, remarks)

    def read(file: Path, _weights: Weights, _remarks: list[str]) -> Sequence[Stored]:
        return read_header(file).tensors

    return read_tensors(root, weights, remarks, read), remarks, True


def _salvage(root: Path, tensors: dict[str, Stored]) -> Iterator[Problem]:
    """Add the tensors of every file that is still readable by itself; the others are problems."""
    for file in sorted(root.glob("*.safetensors")):
        try:
            tensors |= {stored.spec.name: stored for stored in read_header(file).tensors}
        except CheckpointError as error:  # noqa: PERF203  (one bad file must not hide the next)
            yield error.problem


def parsed_json(file: Path) -> Any:
    """The contents of a JSON file, or the problem with it."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return Problem(f"{file.name} cannot be read: {error}", str(file), "JSON")
