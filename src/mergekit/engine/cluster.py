"""Tensor tasks on the machines of a Ray cluster.

The process that was called plans, keeps the journal and tells the progress; batches of tasks are done by the cluster's
processes (:mod:`mergekit.engine.node`). A batch whose process or machine is lost is done again by another one: it puts
the same bytes in the same places.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mergekit import __version__
from mergekit.checkpoint import Checkpoint, ShardWriter
from mergekit.engine.batches import Batch, batches
from mergekit.engine.compute import Compute
from mergekit.engine.connection import connected
from mergekit.engine.local import Outcome
from mergekit.engine.node import Chunk, Done, Failed, Job, Load, work
from mergekit.errors import BudgetError, DeviceError, Findings
from mergekit.plan import Memory, Model, Plan, TensorTask
from mergekit.plan.methods import method_file

_RAY = 128 << 20  # bytes that Ray's library takes in every process, beside the plan's budget
_RETRIES = 3  # of a batch whose process was lost
_AHEAD = 2  # batches for every process, so that none waits for the next one
_SENT = 4  # chunks of each batch that wait to be written here
_ENDING = 30.0  # seconds in which processes may finish what they are doing when a merge ends early


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to merge.

    Parameters:
        address: of the cluster: "auto" for the one that this machine is part of, "HOST:PORT", or "local" for a new one
            of this machine alone, which ends with the merge.
        collect: have machines send what they have merged, instead of writing it at its place.
    """

    address: str
    collect: bool = False


def execute_on_cluster(
    plan: Plan,
    writer: ShardWriter,
    compute: Compute,
    advance: Callable[[int], None],
    finished: Collection[int],
    cluster: Cluster,
) -> Iterator[Outcome]:
    """Do the tasks of a plan, in any order.

    Parameters:
        plan: what to do; its budget of memory and threads is that of every process.
        writer: the output.
        compute: where the mathematics runs.
        advance: called with bytes read and written.
        finished: tasks that are done already, by their index.
        cluster: where to do it.

    Raises:
        DeviceError: there is no such cluster, it is of other software, or it fails.
        BudgetError: no machine has room for one process.
        MergekitError: whatever :func:`mergekit.engine.execute` raises, and that a file is not on one of the machines.
    """
    writer.sync()  # the empty files are there, for all machines, before one of them writes
    with connected(cluster.address) as ray:
        memory, workers = _team(plan.memory, ray.nodes())
        sizes = [(index, task.read_bytes) for index, task in enumerate(plan.tasks) if index not in finished]
        job = ray.put(_packed(ray, _job(plan, memory, compute, cluster.collect), plan.tasks))
        gpus = sum(device.startswith("cuda") for device in compute.devices)
        resources = {"num_cpus": memory.workers, "memory": memory.peak + _RAY, "num_gpus": gpus}
        remote = ray.remote(work).options(
            **resources,
            max_retries=_RETRIES,
            num_returns="streaming",
            _generator_backpressure_num_objects=_SENT,
        )

        def begin(batch: Batch) -> Any:
            tasks = tuple(plan.tasks[index] for index in batch.tasks)
            places = {task.out.name: writer.places[task.out.name] for task in tasks}
            return remote.remote(job, _packed(ray, Load(batch.tasks, tasks, places), tasks))

        for part in _streamed(ray, begin, batches(sizes, workers), _AHEAD * workers):
            if isinstance(part, Chunk):
                writer.write(part.name, part.offset, part.octets)
            else:
                yield from part.outcomes
                advance(part.nbytes)


def _streamed(
    ray: Any, begin: Callable[[Batch], Any], waiting: Sequence[Batch], at_once: int
) -> Iterator[Chunk | Done]:
    """All that comes back from batches, as it comes; so many of them are under way."""
    left = iter(waiting)
    running: list[Any] = []
    try:
        while True:
            running += [begin(batch) for batch in islice(left, at_once - len(running))]
            if not running:
                return
            ready, _ = ray.wait(running, num_returns=1)
            for stream in ready:
                part = _next(ray, stream)
                if not isinstance(part, Chunk):
                    running.remove(stream)
                yield part
    finally:
        _end(ray, running)


def _next(ray: Any, stream: Any) -> Chunk | Done:
    try:
        part: Chunk | Done | Failed = ray.get(next(stream))
    except ray.exceptions.RayTaskError:
        raise  # a mistake of ours
    except ray.exceptions.RayError as error:
        what = f"the cluster lost a part of the merge {1 + _RETRIES} times: {' '.join(str(error).split())}"
        raise DeviceError(what, hint="what `ray status` says") from error
    if isinstance(part, Failed):
        raise part.error
    return part


def _end(ray: Any, running: Sequence[Any]) -> None:
    """Have nobody write any more."""
    for stream in running:
        ray.cancel(stream)
    if running:
        ray.wait([stream.completed() for stream in running], num_returns=len(running), timeout=_ENDING)


def _team(memory: Memory, nodes: Sequence[dict[str, Any]]) -> tuple[Memory, int]:
    """What every process may take, and how many processes there will be.

    Raises:
        BudgetError: there will be none.
    """
    rooms = [
        (int(own.get("CPU", 0)), own.get("memory", 0)) for own in (node["Resources"] for node in nodes if node["Alive"])
    ]
    computing = [(cores, room) for cores, room in rooms if cores]
    threads = min([memory.workers, *(cores for cores, _ in computing)])
    count = sum(min(cores // threads, int(room // (memory.peak + _RAY))) for cores, room in computing)
    if not count:
        raise BudgetError(
            f"no node of the cluster has {(memory.peak + _RAY) / 1e6:.0f} MB of memory and a core to merge with",
            expected=f"Ray knows of {', '.join(f'{cores} cores with {room / 1e6:.0f} MB' for cores, room in rooms)}",
            hint="a lower `--max-memory`, which is that of each process, or fewer threads (`-j`)",
        )
    return replace(memory, workers=threads), count


def _job(plan: Plan, memory: Memory, compute: Compute, collect: bool) -> Job:
    """What every process must know, and nothing that grows with the model."""
    sizes = {str(file): _size(model, file) for model in plan.models for file in _weights(model)}
    common = replace(
        plan,
        models=tuple(map(_outline, plan.models)),
        tasks=(),
        shards=(),
        copies={},
        texts={},
        leftovers=(),
        findings=Findings(),
        memory=memory,
        treated=(),
        alignments={},
    )
    return Job(uuid.uuid4().hex, common, compute, Path.cwd(), sizes, collect, __version__, compute.version)


def _size(model: Model, file: Path) -> int | None:
    if file in model.checkpoint.remote:
        return None
    return file.stat().st_size if file.is_file() else 0


def _weights(model: Model) -> Iterator[Path]:
    yield from model.checkpoint.shards
    if model.adapter:
        yield model.adapter.file


def _outline(model: Model) -> Model:
    """A model's name, and where on the hub it is; tasks know all else."""
    checkpoint = Checkpoint(model.checkpoint.root, {}, {}, (), (), remote=model.checkpoint.remote)
    layout = replace(model.layout, parts={})
    return Model(model.ref, checkpoint, layout, {}, {})


def _packed(ray: Any, value: Job | Load, tasks: Sequence[TensorTask]) -> bytes:
    """A value with the code of methods that were made of a file, which no other machine can import."""
    methods = {type(task.method) for task in tasks}
    made = {method.__module__ for method in methods if method_file(method)}
    for module in made:
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        return bytes(ray.cloudpickle.dumps(value))
    finally:
        for module in made:
            ray.cloudpickle.unregister_pickle_by_value(sys.modules[module])
