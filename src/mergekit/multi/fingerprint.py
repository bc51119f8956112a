"""What a stage is made of, as one hash: whether its folder is up to date can be told without planning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mergekit import __version__
from mergekit.checkpoint.companions import is_companion
from mergekit.checkpoint.finding import read_object
from mergekit.checkpoint.hub import Hub, local_folder, open_model
from mergekit.errors import CheckpointError, MergekitError
from mergekit.merging import JobOptions
from mergekit.multi.reading import Stage
from mergekit.multi.references import references
from mergekit.plan.fingerprint import header_hash
from mergekit.recipe import Address

MARK = ".mergekit_stage.json"
"""The file of a stage's folder that holds its fingerprint."""

_SMALL = 64 << 20  # bytes of a file beside the weights up to which its contents count, and else its size and time
_REPORT = "merge_report.json"
_DECISIVE = ("shard_bytes", "copy_tokenizer", "crop_vocabulary", "fuse_experts", "seed")  # options of planning


def fingerprint(stage: Stage, before: Mapping[str, str], options: JobOptions) -> str:
    """SHA-256 of everything that decides what a stage's folder holds, hexadecimal.

    That is its document, the options that change bytes, the fingerprints of the stages that it needs; and of every
    other model the small files, and of its weights size, time and header. What cannot be read is so when planning, too,
    which tells where the recipe names it.

    Parameters:
        stage: the stage.
        before: fingerprints of the stages that it needs, by name.
        options: of the merge.
    """
    plan = options.plan
    settings = {name: getattr(plan, name) for name in _DECISIVE}
    content = {
        "version": __version__,
        "recipe": stage.document.text.strip(),
        "code": _code(stage),
        "options": {**settings, "device": options.device, "model_card": options.model_card},
        "stages": {name: before[name] for name in stage.needs},
        "models": {str(address): _tried(_model, address, plan.hub) for address in _outside(stage)},
        "adapters": {str(address): _tried(_adapter, address, plan.hub) for address in _adapters(stage)},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def mark(found: str) -> str:
    """Contents of the file that tells later runs what a folder was made of."""
    return json.dumps({"fingerprint": found}) + "\n"


def marked(folder: Path) -> bool:
    """Whether a folder was made by a pipeline."""
    return (folder / MARK).is_file()


def up_to_date(folder: Path, wanted: str) -> bool:
    """Whether a folder was made of the same, and still holds all of its weights."""
    try:
        if read_object(folder / MARK).get("fingerprint") != wanted:
            return False
        shards = json.loads((folder / _REPORT).read_text(encoding="utf-8"))["shards"]
        return all((folder / shard["file"]).stat().st_size == shard["bytes"] for shard in shards)
    except (OSError, CheckpointError, ValueError, KeyError):
        return False


def _outside(stage: Stage) -> list[Address]:
    """The models that are no stages."""
    models = (ref.model for _, ref in references(stage.recipe))
    return [model for model in dict.fromkeys(models) if model.path not in stage.needs]


def _adapters(stage: Stage) -> list[Address]:
    return [adapter for adapter in dict.fromkeys(ref.adapter for _, ref in references(stage.recipe)) if adapter]


def _code(stage: Stage) -> str | None:
    """The Python file that is the method, if it is one: beside the recipe, or here."""
    file, colon, _ = stage.recipe.method.rpartition(":")
    folders = [Path(stage.recipe.file).parent] if stage.recipe.file else []
    found = (folder / file for folder in (*folders, Path()) if (folder / file).is_file())
    return next(map(_contents, found), None) if colon else None


def _tried(read: Callable[[Address, Hub], Mapping[str, object]], address: Address, hub: Hub) -> Mapping[str, object]:
    try:
        return read(address, hub)
    except MergekitError as error:
        return {"unreadable": str(error)}


def _model(address: Address, hub: Hub) -> dict[str, object]:
    checkpoint = open_model(address, hub)
    weights = {}
    for shard in checkpoint.shards:
        if shard in checkpoint.remote:
            weights[shard.name] = [checkpoint.remote[shard].header_sha256]
        else:
            state = shard.stat()
            weights[str(shard.resolve())] = [header_hash(shard), str(state.st_size), str(state.st_mtime_ns)]
    small = (file for file in _within(checkpoint.root) if is_companion(file.name) or file.name == "config.json")
    return {"weights": weights, "files": _hashes(small)}


def _within(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


def _adapter(address: Address, hub: Hub) -> dict[str, str]:
    return _hashes(_within(local_folder(address, hub, True)))


def _hashes(files: Iterable[Path]) -> dict[str, str]:
    return {file.name: _contents(file) for file in files}


def _contents(file: Path) -> str:
    state = file.stat()
    if state.st_size > _SMALL:
        return f"{state.st_size} bytes of {state.st_mtime_ns}"
    return hashlib.sha256(file.read_bytes()).hexdigest()
