"""Merge once more what a model folder says it was merged from, and compare every byte."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mergekit.checkpoint.writing import reported
from mergekit.errors import DeviceError, MergekitError, Problem
from mergekit.merging import JobOptions, Progress
from mergekit.origin import REPORT, Origin, read_origin
from mergekit.plan import PlanOptions
from mergekit.report.bytewise import Comparison, compare_bytes

KERNELS = "kernels"
"""What computes where no device is named."""

_NOT_COMPARED = frozenset({REPORT, "README.md"})  # the first holds durations, the second the name of the folder


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of merging again.

    Parameters:
        folder: what was compared with the new merge.
        tensors: how many tensors were compared.
        files: names of the files that were compared.
        changes: what is known to have changed since: of the models, or in what computes.
        problems: what differs, or why there is nothing to compare with.
    """

    folder: Path
    tensors: int
    files: tuple[str, ...]
    changes: tuple[Problem, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether every byte is the same."""
        return not self.problems


def reproduce(
    out: Path, *, against: Path | None = None, options: JobOptions | None = None, progress: Progress | None = None
) -> Reproduction:
    """Carry out the recipe of a model folder into a temporary folder beside it, and compare weights and other files.

    Models are taken from where they were; those that are not there, from where the recipe says.

    Parameters:
        out: the folder of a merge, with its recipe and its report.
        against: the folder that is compared with the new merge; `out` itself if None.
        options: of its plan the limits of threads and memory, the cache of the hub and `allow_code` count, and the
            device, which is of the kind that computed then if None; what decides the bytes is in the report.
        progress: is told what happens.

    Raises:
        VerificationError: the folder does not say what it was merged from.
        DeviceError: the device is not there.
        MergekitError: the merge cannot be carried out, though no model is known to have changed.
    """
    options = options or JobOptions()
    origin = read_origin(out)
    device, software = _device(origin, options)
    changes, compared = (*origin.changes(), *software), against or out
    with _workplace(out) as place:
        try:
            planning = _limited(origin, options)
            job = JobOptions(planning, device=device, keeping=options.keeping, model_card=False)
            origin.maker.make(origin.text, place / out.resolve().name, job, progress)
        except MergekitError as error:
            if not changes:
                raise
            problem = Problem(f"the merge cannot be repeated: {error}")
            return Reproduction(compared, 0, (), changes, (problem,))
        found: Comparison = compare_bytes(place / out.resolve().name, compared, _NOT_COMPARED)
    return Reproduction(compared, found.tensors, found.files, changes, found.problems)


def _device(origin: Origin, options: JobOptions) -> tuple[str | None, list[Problem]]:
    """Where to compute: as then, or as asked for; and how that differs from then."""
    from mergekit.engine import open_device

    then = origin.device.get("name", KERNELS)
    device = options.device or then.removeprefix("torch ")
    try:
        compute = open_device(device)
    except DeviceError as error:
        if options.device is not None:
            raise
        what = f"this model was computed by `{then}`: {error.problem.what}"
        hint = f"`--device cpu` or `--device {KERNELS}`: other numbers may differ in their last bits"
        raise DeviceError(what, place=str(origin.folder), expected="the same kind of device", hint=hint) from error
    now = compute.record()
    if not origin.device or (now["name"], now["version"]) == (then, origin.device["version"]):
        return device, []
    told = [f"`{name}` ({version})" for name, version in (origin.device.values(), (now["name"], now["version"]))]
    return device, [Problem(f"{told[0]} computed then, and {told[1]} does now", str(origin.folder))]


def _limited(origin: Origin, options: JobOptions) -> PlanOptions:
    own, given = origin.options, options.plan
    hub = replace(given.hub, known=own.hub.known, stream=False)
    return replace(own, workers=given.workers, max_memory=given.max_memory, allow_code=given.allow_code, hub=hub)


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A folder beside the model, on the same disk, that is gone afterwards, whatever happens."""
    final = out.resolve()
    place = final.with_name(f".{final.name}.reproduced-{secrets.token_hex(4)}")
    try:  # from before it is there: a signal may come at any moment
        with reported(place, 0):
            place.mkdir()
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
