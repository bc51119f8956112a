"""Continuing a merge that was interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, final

import numpy as np

from mergekit.checkpoint import Extent, Files
from mergekit.checkpoint.output import journal_beside, sweep
from mergekit.checkpoint.writing import places_in, reported
from mergekit.engine.compute import Compute
from mergekit.engine.identity import changes, identity, other_wish, stamps
from mergekit.engine.journal import Entry, Journal, Recorded, read_journal
from mergekit.engine.local import Outcome
from mergekit.errors import CheckpointError, DeviceError, MergekitError, OutputError
from mergekit.plan import Plan

_CONTINUES = "the same command continues where this one ended"
_AGAIN = "the same command again, which continues where this one ended"
_CHUNK = 1 << 20  # bytes that are read again at a time
_NUMBERS = ("norm", "distance", "reference", "seconds")


def _outcome(task: int, entry: Entry) -> Outcome:
    return Outcome(
        task=task,
        broken=0,  # else the merge had ended there
        checksum=int(entry["checksum"], 16),
        **{name: entry[name] for name in _NUMBERS},
    )


@final
@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a merge begins.

    Parameters:
        plan: the merge.
        compute: where its mathematics runs.
        merge: what decides its bytes, as :func:`~mergekit.engine.identity.identity` says.
        journal: to be continued, or new.
        folder: where the shards are, or will be.
        claimed: tensors that the journal says are finished.
        notices: what a user should know about all this.
    """

    plan: Plan
    compute: Compute
    merge: Entry
    journal: Journal
    folder: Path
    claimed: tuple[Outcome, ...] = ()
    notices: tuple[str, ...] = ()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Close the journal at the end; after an error remove it, unless the same command can go on.

        It can if tensors are finished, their sources are what they were, and the error is none that would come again:
        then the error says so.
        """
        try:
            with self.journal:
                yield
        except BaseException as error:
            if self._lasts(error):
                _raise_with_hope(error)
            self.journal.file.unlink(missing_ok=True)
            raise

    def _lasts(self, error: BaseException) -> bool:
        if isinstance(error, MergekitError) and not isinstance(error, OutputError | CheckpointError | DeviceError):
            return False
        with suppress(OSError):  # what cannot be reached may come back
            for file, stamp in stamps(self.plan).items():
                if not stamp.items() <= self.merge["inputs"][file].items():
                    return False
        return self.journal.count > 0

    def note(self, outcome: Outcome) -> None:
        """Note in the journal that a tensor is finished, all of whose bytes the operating system has."""
        numbers = {name: getattr(outcome, name) for name in _NUMBERS}
        name = self.plan.tasks[outcome.task].out.name
        self.journal.add({"tensor": name, **numbers, "checksum": f"{outcome.checksum:016x}"})

    def finished(self, advance: Callable[[int], None]) -> list[Outcome]:
        """Of the tensors that are said to be finished those whose bytes have the recorded checksum.

        A line in the journal says that the operating system had been given all bytes of the tensor. After a power cut
        the line may be on the disk, and the bytes not, or some of them. So all of them are read, from the disk where
        the system lets go of what it holds in memory: what agrees with its checksum is as good as new, whatever
        happened in between, and what does not is merged again. Therefore neither journal nor tensors have to be forced
        to the disk one by one, which would cost every undisturbed merge more than reading costs the few that are
        continued. All files are forced to the disk once, before the output gets its name.

        Parameters:
            advance: called from any thread with the bytes of finished tasks.
        """
        for shard in self.plan.shards:
            _forget(self.folder / shard.file)
        places = places_in(self.folder, self.plan.shards)

        def intact(outcome: Outcome) -> bool:
            task = self.plan.tasks[outcome.task]
            found = checksum_of(files, places[task.out.name]) == outcome.checksum
            if found:
                advance(task.read_bytes + task.out.nbytes)
            return found

        with Files() as files, ThreadPoolExecutor(self.plan.memory.workers) as pool:
            return [outcome for outcome, kept in zip(self.claimed, pool.map(intact, self.claimed), strict=True) if kept]


def _raise_with_hope(error: BaseException) -> NoReturn:
    """Raise an error again, with a word on what is not lost."""
    if isinstance(error, KeyboardInterrupt):
        raise KeyboardInterrupt(_CONTINUES) from error
    if isinstance(error, MergekitError):
        problem = error.problem
        hint = f"{problem.hint}, and {_AGAIN}" if problem.hint else _AGAIN
        raise type(error)(problem.what, place=problem.place, expected=problem.expected, hint=hint) from error
    raise error


def _forget(file: Path) -> None:
    """Have the system let go of what it holds of a file in memory, so that reading it shows what is on the disk."""
    with suppress(OSError, AttributeError):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def checksum_of(files: Files, extent: Extent) -> int | None:
    """The checksum of a stored tensor; None if not all of it can be read."""
    from mergekit.kernels.fused import checksum

    total = 0
    room = np.empty(min(_CHUNK, extent.nbytes), np.uint8)
    for start in range(0, extent.nbytes, _CHUNK):
        octets = room[: extent.nbytes - start]
        try:
            files.read(Extent(extent.file, extent.start + start, extent.start + start + octets.size), octets)
        except CheckpointError:
            return None
        total += checksum(octets, start)
    return total % 2**64


def begin(plan: Plan, folder: Path, compute: Compute, restart: bool, overwrite: bool) -> Beginning:
    """Continue what is in a folder, or begin there.

    Parameters:
        plan: the merge.
        folder: this process's alone.
        compute: where the mathematics runs.
        restart: whether to begin anew in any case.
        overwrite: whether another unfinished merge may be given up.

    Raises:
        OutputError: there is another unfinished merge; or the folder cannot be written.
    """
    merge = identity(plan, compute)
    found = None if restart else read_journal(journal_beside(folder))
    if found is None or not found.tensors:
        return _anew(plan, compute, merge, folder)
    changed = changes(found.merge, merge)
    if changed and found.merge.get("recipe") == merge["recipe"]:
        return _anew(plan, compute, merge, folder, f"an interrupted merge is begun anew: {' and '.join(changed)}")
    other = other_wish(found.merge, merge)
    if other is None:
        return _continued(plan, compute, merge, folder, found)
    if not overwrite:
        raise OutputError(
            f"an interrupted merge with {other} is in the way; {len(found.tensors)} tensors of it are finished",
            place=str(folder.parent),
            expected="the command that was interrupted, which continues it",
            hint="`--overwrite` or `--restart`, which give it up; or removing that folder; or another output",
        )
    return _anew(plan, compute, merge, folder, f"an interrupted merge with {other} is given up")


def _anew(plan: Plan, compute: Compute, merge: Entry, folder: Path, *notices: str) -> Beginning:
    file = journal_beside(folder)
    with reported(folder, 0):
        file.unlink(missing_ok=True)
        sweep(folder)
    return Beginning(plan, compute, merge, Journal(file, merge), folder, notices=notices)


def _continued(plan: Plan, compute: Compute, merge: Entry, folder: Path, found: Recorded) -> Beginning:
    with reported(folder, 0):
        sweep(folder, {shard.file for shard in plan.shards})
    numbers = {task.out.name: index for index, task in enumerate(plan.tasks)}
    claimed = tuple(_outcome(numbers[name], entry) for name, entry in found.tensors.items())
    notice = f"an interrupted merge is continued: {len(claimed)} of {len(plan.tasks)} tensors are finished"
    journal = Journal(journal_beside(folder), None, found.nbytes, len(claimed))
    return Beginning(plan, compute, merge, journal, folder, claimed, (notice,))
