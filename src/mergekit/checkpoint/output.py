"""The output, a folder or a file: it appears complete, by one rename, or not at all.

Until then it grows in ``OUT.partial/output``. Beside it, and never in what gets the output's name, are a marker, which
says whose folder this is and carries the lock of the process that writes, and the journal of what is finished. Whenever
a process is killed, the next one can go on from what it finds there, or remove it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from mergekit.checkpoint.writing import reported
from mergekit.errors import OutputError

PARTIAL = ".partial"
"""Suffix of the folder that is written to before it has everything."""

_MARKER = ".mergekit-writes-here"
_JOURNAL = "journal.jsonl"
_INSIDE = "output"
_AT_ONCE = 16  # files that are waited for
_MODEL_FILES = ("config.json", "mergekit_config.yml", "merge_report.json", "model.safetensors.index.json")


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Refuse a folder that a merge must not take the place of.

    Raises:
        OutputError: it is a file; or it is not empty, and either `overwrite` is not given or it is no model.
    """
    final = out.resolve()
    if final.exists() and not final.is_dir():
        raise OutputError("the output is a file", place=str(out), expected="a folder that does not exist yet")
    if not final.is_dir() or not any(final.iterdir()):
        return
    if not overwrite:
        raise OutputError("the output folder is not empty", place=str(out), hint="another folder, or `--overwrite`")
    if Path.cwd().is_relative_to(final) or Path.home().is_relative_to(final):
        raise OutputError("the output would replace the folder you work in", place=str(out), hint="another folder")
    if not any((final / name).is_file() for name in _MODEL_FILES):
        what = "the output folder holds something that is not a model, and is not replaced"
        raise OutputError(what, place=str(out), hint="another folder, or removing it yourself")


def refuse_taken(out: Path, overwrite: bool) -> None:
    """Refuse a file that a merge must not take the place of.

    Raises:
        OutputError: it is a folder; or it is there, and `overwrite` is not given.
    """
    if out.is_dir():
        raise OutputError("the output is a folder", place=str(out), expected="a file that does not exist yet")
    if out.exists() and not overwrite:
        raise OutputError("the output file is there already", place=str(out), hint="another name, or `--overwrite`")


def refuse_claimed(out: Path) -> None:
    """Refuse an output that another process is writing now, or whose folder to write to first is somebody's.

    Raises:
        OutputError: see above.
    """
    partial = partial_folder(out)
    if partial.exists() and not (partial.is_dir() and not any(partial.iterdir())):
        os.close(_locked(partial, out))


def partial_folder(out: Path) -> Path:
    """The folder beside an output that is written to first."""
    return out.resolve().with_name(out.resolve().name + PARTIAL)


@contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, which gets the output's name at the end.

    After an error it is gone, unless there is a journal beside it (:func:`journal_beside`): then it stays, and the next
    process that writes the same output finds it as it was.

    Parameters:
        out: the output.
        overwrite: whether it may replace a model that is there.

    Raises:
        OutputError: another process writes the same output, or there is something else in the way.
    """
    with _claimed(out) as folder:
        yield folder
        refuse_occupied(out, overwrite)
        _publish(folder, out.resolve())


@contextmanager
def output_file(out: Path, overwrite: bool, name: str) -> Iterator[Path]:
    """A folder to write one file to, which gets the output's name at the end; for the rest as :func:`output_folder`.

    Parameters:
        out: the output.
        overwrite: whether it may replace a file that is there.
        name: of the file inside the folder.

    Raises:
        OutputError: another process writes the same output, or there is something else in the way.
    """
    with _claimed(out) as folder:
        yield folder
        refuse_taken(out, overwrite)
        final = out.resolve()
        with reported(final, 0):
            (folder / name).replace(final)
            _sync(final.parent)


def journal_beside(folder: Path) -> Path:
    """Where the journal is of what is being written to a folder; the folder never holds it."""
    return folder.with_name(_JOURNAL)


def sweep(folder: Path, kept: Container[str] = ()) -> None:
    """Remove what is in a folder, without following links.

    Parameters:
        folder: it stays.
        kept: names of entries that stay.
    """
    for left in folder.iterdir():
        if left.name not in kept:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


@contextmanager
def _claimed(out: Path) -> Iterator[Path]:
    """A folder inside of the one that is written to first; both are this process's alone, and gone at the end."""
    partial = partial_folder(out)
    lock = _claim(partial, out)
    folder = partial / _INSIDE
    journal = journal_beside(folder)
    try:
        with reported(partial, 0):
            # A journal without a folder is of an output that has its name already.
            sweep(partial, (_MARKER, _JOURNAL, _INSIDE) if journal.is_file() and folder.is_dir() else (_MARKER,))
            folder.mkdir(exist_ok=True)
        yield folder
    except BaseException:
        if not journal.is_file():
            with suppress(OSError):
                _remove(partial)
        raise
    else:
        _remove(partial)
    finally:
        os.close(lock)


def _remove(partial: Path) -> None:
    """Remove the folder with all that is in it; as long as there is anything, the marker is there."""
    sweep(partial, (_MARKER,))
    (partial / _MARKER).unlink()
    partial.rmdir()


def _claim(partial: Path, out: Path) -> int:
    """Make the folder, or take over what an interrupted process left; returns the lock."""
    marker = partial / _MARKER
    with reported(partial, 0):
        partial.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            partial.mkdir()
        if partial.is_dir() and not any(partial.iterdir()):
            marker.touch()
    return _locked(partial, out)


def _locked(partial: Path, out: Path) -> int:
    """The lock of the folder that is written to first."""
    import fcntl

    marker = partial / _MARKER
    if not marker.is_file():
        what = "the folder to write to first is there already, and is not from an interrupted merge"
        raise OutputError(what, place=str(partial), hint="another output, or removing it")
    with reported(marker, 0):
        lock = os.open(marker, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who had the lock may have finished meanwhile, and removed what is locked now.
        if not os.path.samestat(os.fstat(lock), marker.stat()):
            raise FileNotFoundError
    except OSError as error:
        os.close(lock)
        raise OutputError("another process is writing this output", place=str(out), hint="waiting for it") from error
    return lock


def _publish(folder: Path, final: Path) -> None:
    """Give the finished folder its name; what was there comes back if that fails."""
    with reported(final, 0):
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # file systems wait for several at a time as long as for one
            list(pool.map(_sync, [*folder.rglob("*"), folder]))
        if not final.exists():
            folder.rename(final)
        else:
            kept = Path(tempfile.mkdtemp(prefix=f".{final.name}.replaced-", dir=final.parent))
            final.rename(kept / final.name)
            try:
                folder.rename(final)
            except BaseException:
                (kept / final.name).rename(final)
                kept.rmdir()
                raise
            shutil.rmtree(kept)
        _sync(final.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
