"""The main job: a recipe in, a model folder out; and how any other plan is carried out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mergekit.checkpoint import Files, ShardWriter, shard_index
from mergekit.checkpoint.finding import SAFETENSORS
from mergekit.checkpoint.hub import RemoteFiles
from mergekit.checkpoint.output import output_file, output_folder, refuse_occupied, refuse_taken
from mergekit.checkpoint.writing import reported
from mergekit.plan import Plan, PlanOptions
from mergekit.preview import Job, check_merge, refuse_input, room_for
from mergekit.report import merge_report, model_card, report_text

if TYPE_CHECKING:
    from mergekit.engine import Beginning, Compute, Outcome


class Progress(Protocol):
    """What a merge tells while it runs; `advance` is called from any thread."""

    def planned(self, plan: Plan) -> None:
        """The plan stands, with its warnings and notices."""

    def advance(self, nbytes: int) -> None:
        """So many bytes were read and written; all add up to the plan's `read_bytes` and `write_bytes`."""


class Silent:
    """Tells nothing."""

    def planned(self, plan: Plan) -> None:
        """Nothing."""

    def advance(self, nbytes: int) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a recipe is carried out.

    Parameters:
        plan: options of planning.
        device: where the mathematics runs, as :func:`mergekit.engine.open_device` takes it; None for compiled kernels
            on the CPU.
        overwrite: replace an existing output folder, and what another interrupted merge has left for this output.
        restart: begin anew, whatever an interrupted merge has left.
        model_card: write README.md.
        room: do not begin if there seems to be too little room on the disk.
        ray: merge on the machines of the Ray cluster at this address, as :mod:`mergekit.engine.cluster` takes it; None
            for the threads of this process.
        collect: have those machines send what they have merged, instead of writing it to storage that they share.
        keeping: whether a device keeps what it can of a tensor between the sweeps over it.
    """

    plan: PlanOptions = field(default_factory=PlanOptions)
    device: str | None = None
    overwrite: bool = False
    restart: bool = False
    model_card: bool = True
    room: bool = True
    ray: str | None = None
    collect: bool = False
    keeping: bool = False


def merge_recipe(
    text: str,
    out: Path,
    *,
    file: str | None = None,
    options: JobOptions | None = None,
    progress: Progress | None = None,
) -> Mapping[str, object]:
    """Merge what a recipe describes into a new model folder.

    The folder appears complete, by one rename, or not at all. What is finished when the merge is interrupted stays in a
    folder beside it, and the same merge into the same folder continues from there.

    Parameters:
        text: the recipe, YAML.
        out: the folder to be made.
        file: the recipe's name, for messages.
        options: see :class:`JobOptions`.
        progress: is told what happens.

    Returns:
        The report, which is also written to ``merge_report.json``.

    Raises:
        MergekitError: everything that stands in the way is told at once; see the tree in :mod:`mergekit.errors`.
    """
    began = time.perf_counter()
    options = options or JobOptions()
    job = Job(text, file, out, options.plan, options.device, options.overwrite, options.keeping)
    plan = check_merge(job, room=options.room).result()
    return _into_folder(plan, _opened(options), out, options, progress or Silent(), began)


def carry_out(
    planned: Callable[[], Plan], out: Path, options: JobOptions, progress: Progress | None = None
) -> Mapping[str, object]:
    """Make a plan and do what it says.

    Parameters:
        planned: makes the plan; called once it is known that the output may be written.
        out: the folder to be made.
        options: see :class:`JobOptions`; those of planning are not looked at.
        progress: is told what happens.

    Returns:
        The report, which is also written to ``merge_report.json``.

    Raises:
        MergekitError: whatever `planned` raises; or the output cannot be written, or must not be.
    """
    began = time.perf_counter()
    refuse_occupied(out, options.overwrite)
    compute = _opened(options)
    return _into_folder(_checked(planned(), out, options), compute, out, options, progress or Silent(), began)


def _into_folder(
    plan: Plan, compute: Compute, out: Path, options: JobOptions, progress: Progress, began: float
) -> Mapping[str, object]:
    """Do what a plan says that was checked."""
    with output_folder(out, options.overwrite) as folder:
        beginning = _begin(plan, folder, compute, options)
        with beginning.guarded():
            report = _write_weights(beginning, options, progress, began)
            _write_rest(plan, folder, out, options, report)
    return report


def carry_out_into_file(
    planned: Callable[[], Plan], out: Path, options: JobOptions, progress: Progress | None = None
) -> Mapping[str, object]:
    """Make a plan of one shard and write its tensors to a file, without anything beside it.

    Parameters:
        planned: makes the plan; called once it is known that the output may be written.
        out: the file to be made.
        options: see :class:`JobOptions`.
        progress: is told what happens.

    Returns:
        The report, which is written nowhere.

    Raises:
        MergekitError: whatever `planned` raises; or the output cannot be written, or must not be.
    """
    began = time.perf_counter()
    refuse_taken(out, options.overwrite)
    progress, compute = progress or Silent(), _opened(options)
    plan = _checked(planned(), out, options)
    with output_file(out, options.overwrite, SAFETENSORS.single) as folder:
        beginning = _begin(plan, folder, compute, options)
        with beginning.guarded():
            return _write_weights(beginning, options, progress, began)


def _checked(plan: Plan, out: Path, options: JobOptions) -> Plan:
    """Look at the output for plans that no recipe was checked for."""
    refuse_input(plan.models, out)
    if options.room:
        room_for(plan, out).require()
    return plan


@contextmanager
def inputs_of(plan: Plan) -> Iterator[RemoteFiles]:
    """What a plan reads from: files on the disk, and those that are left on the hub."""
    with Files() as local, RemoteFiles(local, plan.remote, plan.streams) as files:
        yield files


def _opened(options: JobOptions) -> Compute:
    """Where the mathematics runs: asked before anything is planned, or even downloaded."""
    from mergekit.engine import open_device

    return open_device(options.device, options.keeping)


def _begin(plan: Plan, folder: Path, compute: Compute, options: JobOptions) -> Beginning:
    from mergekit.engine import begin

    return begin(plan, folder, compute, options.restart, options.overwrite)


def _write_weights(beginning: Beginning, options: JobOptions, progress: Progress, began: float) -> Mapping[str, object]:
    plan = beginning.plan
    # The report is that of an undisturbed merge: what is to be said about this one is not in the plan.
    notices = [*plan.findings.notices, *beginning.compute.notices, *beginning.notices]
    progress.planned(replace(plan, findings=replace(plan.findings, notices=notices)))
    planned = time.perf_counter()
    outcomes = beginning.finished(progress.advance)
    done = {outcome.task for outcome in outcomes}
    with ShardWriter(beginning.folder, plan.shards) as writer:
        for outcome in _outcomes(beginning, options, writer, progress.advance, done):
            beginning.note(outcome)
            outcomes.append(outcome)
    seconds = {"planning": planned - began, "merging": time.perf_counter() - planned}
    return merge_report(plan, outcomes, seconds, beginning.compute.record())


def _outcomes(
    beginning: Beginning, options: JobOptions, writer: ShardWriter, advance: Callable[[int], None], done: Set[int]
) -> Iterator[Outcome]:
    """Do the tasks that are not done: here, or on other machines."""
    plan, compute = beginning.plan, beginning.compute
    if options.ray is not None:
        from mergekit.engine.cluster import Cluster, execute_on_cluster

        cluster = Cluster(options.ray, options.collect)
        yield from execute_on_cluster(plan, writer, compute, advance, done, cluster)
    else:
        from mergekit.engine import execute

        with inputs_of(plan) as files:
            yield from execute(plan, files, writer, compute, advance, done)


def _write_rest(plan: Plan, partial: Path, out: Path, options: JobOptions, report: Mapping[str, object]) -> None:
    texts = {**plan.texts, "merge_report.json": report_text(report)}
    if len(plan.shards) > 1:
        index = shard_index(plan.shards, {})
        texts["model.safetensors.index.json"] = json.dumps(index, indent=2) + "\n"
    if options.model_card:
        texts["README.md"] = model_card(plan, out.resolve().name)
    _write_files(partial, plan.copies, texts)


def _write_files(folder: Path, copies: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    for name, source in copies.items():
        target = folder / name
        with reported(target, source.stat().st_size):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for name, text in texts.items():
        with reported(folder / name, len(text.encode())):
            (folder / name).write_text(text, encoding="utf-8", newline="")
