"""What a process on another machine does of a merge: batches of tasks, one after the other."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit import __version__
from mergekit.checkpoint import Extent, Files
from mergekit.checkpoint.hub import RemoteFiles
from mergekit.checkpoint.writing import RangeWriter, reported
from mergekit.engine.compute import Compute
from mergekit.engine.local import Outcome, execute
from mergekit.errors import CheckpointError, DeviceError, MergekitError, OutputError
from mergekit.plan import Plan, TensorTask

CHUNK = 16 << 20
"""Bytes of output that are sent at a time."""

_OPEN = 256  # files that stay open from one batch to the next, at most


@dataclass(frozen=True, slots=True)
class Job:
    """What all batches of a merge have in common.

    Parameters:
        key: another one for every merge.
        plan: with the models, and without tasks.
        compute: where the mathematics runs.
        root: what relative names of files begin at.
        sizes: of the files that are read, in bytes; None for those on the hub.
        collect: send the output back instead of writing it at its place.
        mergekit, version: of the process that began the merge, and of its `compute`.
    """

    key: str
    plan: Plan
    compute: Compute
    root: Path
    sizes: Mapping[str, int | None]
    collect: bool
    mergekit: str
    version: str


@dataclass(frozen=True, slots=True)
class Load:
    """A batch on its way.

    Parameters:
        indices: of the tasks in the whole plan.
        tasks: the tasks.
        places: where their output goes.
    """

    indices: tuple[int, ...]
    tasks: tuple[TensorTask, ...]
    places: Mapping[str, Extent]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an output tensor on its way.

    Parameters:
        name: the tensor.
        offset: where the part begins, in bytes from the beginning of the tensor.
        octets: the part.
    """

    name: str
    offset: int
    octets: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Done:
    """A batch is finished.

    Parameters:
        outcomes: of its tasks, with their indices in the whole plan.
        nbytes: read and written, as progress counts them.
    """

    outcomes: tuple[Outcome, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A batch cannot be finished, here or anywhere.

    Parameters:
        error: why.
    """

    error: MergekitError


def node_name() -> str:
    """What this machine is called in messages."""
    util: Any = import_module("ray.util")
    return f"{socket.gethostname()} ({util.get_node_ip_address()})"


def work(job: bytes, load: bytes) -> Iterator[Chunk | Done | Failed]:
    """Do a batch.

    The result is a value also where it is an error: what is raised instead means that the process or its machine has
    failed, and the batch is done again elsewhere.

    Parameters:
        job: a pickled :class:`Job`.
        load: a pickled :class:`Load`.
    """
    try:
        yield from _worked(_unpacked(job), _unpacked(load))
    except MergekitError as error:
        yield Failed(error)


def _unpacked(pickled: bytes) -> Any:
    import pickle

    try:
        return pickle.loads(pickled)
    except (ImportError, AttributeError) as error:
        what = f"the node {node_name()} lacks what the merge needs: {error}"
        raise DeviceError(what, hint="the same packages on every node") from error


def _worked(job: Job, load: Load) -> Iterator[Chunk | Done]:
    _refuse_other_software(job)
    files = _process.files(job, load)
    room = tempfile.TemporaryDirectory(prefix="mergekit-") if job.collect else nullcontext(None)
    with room as folder:
        places = load.places if folder is None else _laid_out(load.tasks, Path(folder, "tensors"))
        with RangeWriter(places) as writer:
            done = _merged(job, load, files, writer)
        if folder is not None:
            yield from _chunks(places)
    yield done


def _merged(job: Job, load: Load, files: Files, writer: RangeWriter) -> Done:
    plan = replace(job.plan, tasks=load.tasks)
    counted: list[int] = []  # a list may grow from any thread
    try:
        with RemoteFiles(files, plan.remote, plan.streams) as inputs:
            outcomes = list(execute(plan, inputs, writer, job.compute, counted.append))
        if not job.collect:
            writer.sync()  # what the machine still holds would be lost with it
    except (CheckpointError, OutputError) as error:
        raise _here(error) from error
    own = tuple(replace(outcome, task=load.indices[outcome.task]) for outcome in outcomes)
    return Done(own, sum(counted))


def _here(error: MergekitError) -> MergekitError:
    """The same error, with the machine that it is about."""
    problem = error.problem
    what, hint = f"on the node {node_name()}: {problem.what}", problem.hint
    if isinstance(error, OutputError) and isinstance(error.__cause__, FileNotFoundError):
        hint = "an output on storage that all nodes share, or `--ray-collect`"
    return type(error)(what, place=problem.place, expected=problem.expected, hint=hint)


def _refuse_other_software(job: Job) -> None:
    """Bytes may not depend on which machine has made them."""
    if job.mergekit != __version__:
        what = f"the node {node_name()} has mergekit {__version__}, and the merge was begun by {job.mergekit}"
        raise DeviceError(what, hint="the same packages on every node")
    if job.version != job.compute.version:
        what = f"the node {node_name()} computes with other software or another kind of processor than the merge's"
        raise DeviceError(
            what,
            expected="what was there where the merge was begun: else bytes would depend on who makes them",
            hint="nodes of one kind, with the same packages, and the command on one of them",
        )


def _laid_out(tasks: Sequence[TensorTask], file: Path) -> dict[str, Extent]:
    """One file with room for the output of all tasks."""
    places, end = {}, 0
    for task in tasks:
        places[task.out.name] = Extent(file, end, end + task.out.nbytes)
        end += task.out.nbytes
    with reported(file, end), file.open("wb") as stream:
        stream.truncate(end)
    return places


def _chunks(places: Mapping[str, Extent]) -> Iterator[Chunk]:
    with Files() as files:
        for name, place in places.items():
            for start in range(place.start, place.stop, CHUNK):
                stop = min(start + CHUNK, place.stop)
                octets = np.empty(stop - start, np.uint8)
                files.read(Extent(place.file, start, stop), octets)
                yield Chunk(name, start - place.start, octets)


@final
class _Process:
    """What a process keeps from one batch to the next: the open files of the merge it works for."""

    def __init__(self) -> None:
        self._key = ""
        self._seen: set[str] = set()
        self._files = Files()

    def files(self, job: Job, load: Load) -> Files:
        """The inputs, after a look at those that are new.

        Raises:
            CheckpointError: one is not there, or is another one.
        """
        needed = {file for task in load.tasks for operand in task.operands for file in operand.view.files}
        if self._key != job.key or len(self._seen | needed) > _OPEN:
            self._files.close()
            self._key, self._seen, self._files = job.key, set(), Files(job.root)
        for file in sorted(needed - self._seen):
            _require(job, file)
        self._seen |= needed
        return self._files


_process = _Process()


def _require(job: Job, file: str) -> None:
    size, path = job.sizes.get(file), job.root / file
    if size is None:
        return
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        lack = "there is no such file" if found is None else f"the file has {found} bytes instead of {size}"
        raise CheckpointError(
            f"{lack} on the node {node_name()}",
            place=str(path),
            expected="what every node sees under this name: models on shared storage, or a copy on each node",
            hint="the same models in the same folders on every node, or models on the hub with `--stream`",
        )
