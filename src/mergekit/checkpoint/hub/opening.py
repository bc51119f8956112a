"""Opens what a reference names: a folder here, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mergekit.checkpoint.finding import SAFETENSORS, Weights, read_object
from mergekit.checkpoint.folder import Checkpoint, open_checkpoint, read_tensors
from mergekit.checkpoint.hub.client import Reference, explained
from mergekit.checkpoint.hub.fetching import Hub, Snapshot, fetch, is_local
from mergekit.checkpoint.hub.remote import Remote, open_remote
from mergekit.checkpoint.tensors import Stored
from mergekit.errors import CheckpointError, MissingModelError


def local_folder(reference: Reference, hub: Hub | None = None, adapter: bool = False) -> Path:
    """The folder that a reference names; a repository of the hub is downloaded, if it is not in the cache.

    Parameters:
        reference: a folder, or a name of the hub and a revision.
        hub: how to take it from the hub; weights are never left there.
        adapter: it is wanted as an adapter: nothing else of it is downloaded.

    Raises:
        MissingModelError: there is neither such a folder nor such a repository.
        CheckpointError: the hub refuses or cannot be reached, or the disk is full.
    """
    hub = hub or Hub()
    if (known := hub.known.get(str(reference))) is not None:
        return known
    if is_local(reference):
        return Path(reference.path).expanduser()
    return fetch(reference, replace(hub, stream=False), adapter).root


def open_model(reference: Reference, hub: Hub | None = None) -> Checkpoint:
    """Read what a model holds, here or on the hub: its config and the headers of its weights, no weight.

    Parameters:
        reference: a folder, or a name of the hub and a revision.
        hub: how to take it from the hub.

    Raises:
        MissingModelError: there is neither such a folder nor such a repository.
        CheckpointError: it is not a complete model, or the hub refuses or cannot be reached, or the disk is full.
        HeaderError: a weight file lies about its contents.
    """
    hub = hub or Hub()
    if (known := hub.known.get(str(reference))) is not None:
        return open_checkpoint(known)
    folder = Path(reference.path).expanduser()
    if is_local(reference):
        return open_checkpoint(folder)
    try:
        snapshot = fetch(reference, hub)
    except MissingModelError as error:
        raise _with_neighbour(error, folder) from error
    checkpoint = _streamed(reference, snapshot) if snapshot.remote else open_checkpoint(snapshot.root)
    return replace(checkpoint, remarks=(*snapshot.remarks, *checkpoint.remarks))


def _with_neighbour(error: MissingModelError, folder: Path) -> MissingModelError:
    """The same error; where there is a folder of nearly that name, it may be what was meant."""
    try:
        open_checkpoint(folder)
    except CheckpointError as local:
        problem, hint = error.problem, local.problem.hint
        if hint and not problem.hint:
            return MissingModelError(problem.what, place=problem.place, expected=problem.expected, hint=hint)
    return error


def _streamed(reference: Reference, snapshot: Snapshot) -> Checkpoint:
    addresses: Mapping[str, str] = snapshot.remote or {}
    index = snapshot.root / SAFETENSORS.index
    places = read_object(index).get("weight_map") if index.is_file() and len(addresses) > 1 else None
    weights = Weights(SAFETENSORS, tuple(addresses), places)
    remote: dict[Path, Remote] = {}

    def read(file: Path, _weights: Weights, _remarks: list[str]) -> Sequence[Stored]:
        with explained(reference):
            remote[file], header = open_remote(file, addresses[file.relative_to(snapshot.root).as_posix()])
        return header.tensors

    remarks: list[str] = []
    tensors = read_tensors(snapshot.root, weights, remarks, read)
    config = read_object(snapshot.root / "config.json")
    files = tuple(snapshot.root / name for name in addresses)
    return Checkpoint(snapshot.root, tensors, config, files, tuple(remarks), remote=remote)
