"""Everything that can be known to stand in a merge's way before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergekit.checkpoint.output import partial_folder, refuse_claimed, refuse_occupied
from mergekit.engine import open_device
from mergekit.errors import DeviceError, MergekitError, OutputError
from mergekit.plan import Attempt, Model, Plan, PlanOptions, try_to_plan
from mergekit.preview.space import Space, refuse_unwritable, spaces


@dataclass(frozen=True, slots=True)
class Job:
    """A merge that may be carried out.

    Parameters:
        text: the recipe, YAML.
        file: its name, for messages.
        out: the folder to be made, or None if that is not known yet.
        planning: options of planning.
        device: as :func:`mergekit.engine.open_device` takes it.
        overwrite: replace an existing output folder.
        keeping: whether the device keeps what it can of a tensor.
        tried: what plans it; :func:`~mergekit.plan.try_to_plan` for a merge of models.
    """

    text: str
    file: str | None = None
    out: Path | None = None
    planning: PlanOptions = field(default_factory=PlanOptions)
    device: str | None = None
    overwrite: bool = False
    keeping: bool = False
    tried: Callable[..., Attempt] = try_to_plan


@dataclass(frozen=True, slots=True)
class Check:
    """What came of looking at a merge.

    Parameters:
        attempt: the plan, or why there is none; all problems are in it, those of the output and the device as well.
        spaces: room on the file systems that the merge writes to.
        notices: what a user should know about the device.
    """

    attempt: Attempt
    spaces: tuple[Space, ...]
    notices: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[MergekitError, ...]:
        """Everything that stands in the way, each kind with its exit code."""
        return self.attempt.problems.errors

    def result(self) -> Plan:
        """The plan.

        Raises:
            MergekitError: whatever stands in the way; :class:`~mergekit.errors.SeveralProblemsError` if that is more
                than one thing.
        """
        return self.attempt.result()


def check_merge(job: Job, *, room: bool = True) -> Check:
    """Look at everything that can be known about a merge without reading weights, and collect what is wrong.

    Parameters:
        job: the merge.
        room: also refuse a disk with too little room, which is a guess where files are compressed or shared.
    """
    notices, absent = _device(job)
    # For a merge that cannot be carried out here nothing is downloaded.
    planning = replace(job.planning, preview=job.planning.preview or absent is not None)
    attempt = job.tried(job.text, file=job.file, options=planning)
    problems = attempt.problems
    if job.out is not None:
        with problems.collected():
            refuse_occupied(job.out, job.overwrite)
        with problems.collected():
            refuse_input(attempt.models, job.out)
            refuse_claimed(job.out)
        with problems.collected():
            refuse_unwritable(job.out)
    if absent is not None:
        problems.refusals.append(absent)
    cache = job.planning.hub.folder if _downloads(job, attempt.models) else None
    found = spaces(attempt, job.out, cache)
    for space in found if room else ():
        with problems.collected():
            space.require()
    return Check(attempt, found, notices)


def _device(job: Job) -> tuple[tuple[str, ...], DeviceError | None]:
    """What is to be said about the device, or why it cannot be used."""
    try:
        return open_device(job.device, job.keeping).notices, None
    except DeviceError as error:
        return (), error


def _downloads(job: Job, models: Sequence[Model]) -> bool:
    return not job.planning.hub.stream and any(model.checkpoint.remote for model in models)


def refuse_input(models: Sequence[Model], out: Path) -> None:
    """Refuse an output whose making would replace or sweep away an input, or what holds one.

    Parameters:
        models: the inputs.
        out: the output.

    Raises:
        OutputError: it would.
    """
    swept = (out.resolve(), partial_folder(out))
    for model in models:
        places = [path.resolve() for path in (model.checkpoint.root, *model.checkpoint.shards)]
        if any(place.is_relative_to(path) for place in places for path in swept):
            what = f"the output would replace one of the models to be merged, {model.ref}"
            raise OutputError(what, place=str(out), hint="another folder")
