"""Room on disks: how much a merge takes, and how much there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mergekit.checkpoint.output import partial_folder
from mergekit.errors import OutputError
from mergekit.plan import Attempt, Plan
from mergekit.report.record import in_units

_LINE = 1000  # bytes in report, journal and model card that a tensor leaves, about


@dataclass(frozen=True, slots=True)
class Space:
    """Room on one file system.

    Parameters:
        folder: on that file system, and there already.
        needed: bytes that the merge takes, beyond what it has taken before.
        free: bytes.
    """

    folder: Path
    needed: int
    free: int

    def require(self) -> None:
        """Refuse to begin what would fill the disk.

        Raises:
            OutputError: there is too little room.
        """
        if self.needed > self.free:
            raise OutputError(
                f"about {in_units(self.needed)} are needed on this disk, and {in_units(self.free)} are free",
                place=str(self.folder),
                hint="another disk, or making room on this one; `--no-check` tries all the same",
            )


def nearest_folder(path: Path) -> Path:
    """The folder that a path is in or would be made in: the nearest one that is there.

    Example:
        >>> nearest_folder(Path("/no-such-folder/model"))
        PosixPath('/')
    """
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def held_bytes(folder: Path) -> int:
    """Bytes that the files in a folder take on the disk."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def free_bytes(folder: Path) -> int:
    """Bytes on the file system of a folder that may still be written."""
    return shutil.disk_usage(folder).free


def other_bytes(plan: Plan) -> int:
    """Bytes of all output files without weights; of those that tell of the merge, about so many."""
    copied = sum(source.stat().st_size for source in plan.copies.values())
    return copied + sum(len(text.encode()) for text in plan.texts.values()) + _LINE * len(plan.tasks)


def needed_bytes(written: int, plan: Plan | None, out: Path) -> int:
    """Bytes that an output still takes, while what it replaces is still there.

    Parameters:
        written: bytes of the weights.
        plan: what else there will be; None if that is not known.
        out: the output.
    """
    others = other_bytes(plan) if plan else 0
    return max(0, written + others - held_bytes(partial_folder(out)))


def room_for(plan: Plan, out: Path) -> Space:
    """Room where an output would be made.

    Parameters:
        plan: the merge.
        out: the output.
    """
    folder = nearest_folder(out)
    return Space(folder, needed_bytes(sum(shard.nbytes for shard in plan.shards), plan, out), free_bytes(folder))


def spaces(attempt: Attempt, out: Path | None, cache: Path | None) -> tuple[Space, ...]:
    """Every file system that a merge takes room on.

    Parameters:
        attempt: the plan, or what there is of it.
        out: the output.
        cache: where models are downloaded to; None if none are.
    """
    needs: dict[int, tuple[Path, int]] = {}
    for path, nbytes in _needs(attempt, out, cache):
        folder = nearest_folder(path)
        first, before = needs.get(folder.stat().st_dev, (folder, 0))
        needs[folder.stat().st_dev] = first, before + nbytes
    return tuple(Space(folder, nbytes, free_bytes(folder)) for folder, nbytes in needs.values())


def _needs(attempt: Attempt, out: Path | None, cache: Path | None) -> Iterator[tuple[Path, int]]:
    if out is not None and attempt.written is not None:
        yield out, needed_bytes(attempt.written, attempt.plan, out)
    downloads = sum(remote.nbytes for model in attempt.models for remote in model.checkpoint.remote.values())
    if cache is not None and downloads:
        yield cache, downloads


def refuse_unwritable(out: Path) -> None:
    """Refuse an output in a folder that nothing may be written to.

    Raises:
        OutputError: it is read-only, or somebody else's.
    """
    folder = nearest_folder(out.resolve().parent)
    inside = folder / out.resolve().relative_to(folder).parts[0]
    if inside != out.resolve() and inside.exists():
        raise OutputError("the output is in something that is no folder", place=str(inside), hint="another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError("nothing may be written here", place=str(folder), hint="a folder that you may write to")
