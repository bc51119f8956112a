"""What decides the bytes of a merge, so that only a merge of the same bytes is continued."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, final

import numpy as np

from mergekit import __version__
from mergekit.checkpoint import DType
from mergekit.engine.compute import Compute
from mergekit.engine.journal import Entry
from mergekit.methods import Method
from mergekit.plan import Plan
from mergekit.plan.fingerprint import header_hash, recipe_hash

FORMAT = 1
"""Version of the journal's structure."""

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_SHARED = (DType, Method, Path, np.ndarray)

_ASKED = {
    "recipe": "another recipe",
    "seed": "another `--random-seed`",
    "device": "another `--device`",
    "shards": "another `--out-shard-size`",
    "tasks": "other options, or other configs or tokenizers beside the models' weights",
}
"""What a user decides, and what it means that it differs."""


def identity(plan: Plan, compute: Compute) -> dict[str, Any]:
    """Everything that decides the bytes of the weights, as values of JSON.

    Parameters:
        plan: the merge.
        compute: where its mathematics runs.
    """
    return {
        "format": FORMAT,
        "mergekit": __version__,
        "recipe": recipe_hash(plan.recipe.text),
        "seed": plan.seed,
        "device": compute.name,
        "version": compute.version,
        "code": _code(plan),
        "inputs": {file: {**stamp, "header": _header(plan, file)} for file, stamp in stamps(plan).items()},
        "shards": _digest([(shard.file, shard.head, shard.nbytes) for shard in plan.shards]),
        "tasks": _digest(plan.tasks),
    }


def stamps(plan: Plan) -> dict[str, dict[str, int]]:
    """Size in bytes and time of the last change of every weight file that is read; of a file on the hub, its size."""
    found: dict[str, dict[str, int]] = {}
    for model in plan.models:
        for file in (*model.checkpoint.shards, *([model.adapter.file] if model.adapter else [])):
            remote = model.checkpoint.remote.get(file)
            if remote is not None:
                found[str(file)] = {"bytes": remote.nbytes}
            else:
                state = file.stat()
                found[str(file.absolute())] = {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
    return found


def _header(plan: Plan, file: str) -> str:
    remote = {str(path): found for path, found in plan.remote.items()}
    return remote[file].header_sha256 if file in remote else header_hash(Path(file))


def _code(plan: Plan) -> dict[str, str]:
    """The Python files of methods that are not ours, with their hashes."""
    methods = {type(task.method) for task in plan.tasks}
    modules = {method.__module__ for method in methods if method.__module__.partition(".")[0] != "mergekit"}
    files = sorted(file for module in modules if (file := getattr(sys.modules.get(module), "__file__", None)))
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


def other_wish(old: Entry, new: Entry) -> str | None:
    """What a user asks for that is not what was begun, in words; None if it is the same."""
    return next((words for key, words in _ASKED.items() if old.get(key) != new[key]), None)


def changes(old: Entry, new: Entry) -> list[str]:
    """What has changed by itself since a merge was begun, so that it cannot be continued; in clauses."""
    if old.get("format") != new["format"] or old.get("mergekit") != new["mergekit"]:
        return ["it was begun by another version of mergekit"]
    reasons = []
    for kind in ("inputs", "code"):
        before, now = old[kind], new[kind]
        reasons += [f"{file} has changed" for file in now if before.get(file, now[file]) != now[file]]
        reasons += ["it read other files"] * (before.keys() != now.keys())
    if old["device"] == new["device"] and old["version"] != new["version"]:
        reasons.append("it was computed by other software")
    return reasons


def _digest(values: Iterable[object]) -> str:
    digest, described = hashlib.sha256(), _Described()
    for value in values:
        digest.update(described.text(value).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


@final
class _Described:
    """Values as text: the same for equal values in any process."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}  # of what many tensors share, by identity
        self._fields: dict[type, tuple[str, ...]] = {}

    def text(self, value: Any) -> str:
        """A value; what has parts says which, and of what kind it is."""
        kind = type(value)
        if kind in _PLAIN:
            return repr(value)
        if kind is tuple or kind is list:
            return f"({','.join(map(self.text, value))})"
        if isinstance(value, _SHARED):
            known = self._known.get(id(value))
            if known is None:
                known = self._known[id(value)] = self._made(value, kind)
            return known
        return self._made(value, kind)

    def _made(self, value: Any, kind: type) -> str:
        if is_dataclass(kind):
            if kind not in self._fields:
                self._fields[kind] = tuple(each.name for each in fields(kind))
            return f"{kind.__qualname__}({','.join(self.text(getattr(value, name)) for name in self._fields[kind])})"
        if isinstance(value, np.ndarray):
            return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
        if isinstance(value, Mapping):
            return f"{{{','.join(f'{self.text(key)}:{self.text(own)}' for key, own in value.items())}}}"
        if isinstance(value, Path | Enum | np.generic | np.dtype):
            return repr(value)
        raise TypeError(f"a {kind.__qualname__} has no description")
