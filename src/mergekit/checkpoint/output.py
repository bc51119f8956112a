"""The output, a folder or a file: it appears complete, by one rename, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mergekit.checkpoint.writing import reported
from mergekit.errors import OutputError

PARTIAL = ".partial"
"""Suffix of the folder that is written to before it has everything."""

_MARKER = ".mergekit-writes-here"
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


def partial_folder(out: Path) -> Path:
    """The folder beside an output that is written to first."""
    return out.resolve().with_name(out.resolve().name + PARTIAL)


@contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, which gets the output's name at the end and is gone after an error.

    Parameters:
        out: the output.
        overwrite: whether it may replace a model that is there.

    Raises:
        OutputError: another process writes the same output, or there is something else in the way.
    """
    with _claimed(out) as partial:
        yield partial
        refuse_occupied(out, overwrite)
        (partial / _MARKER).unlink()
        _publish(partial, out.resolve())


@contextmanager
def output_file(out: Path, overwrite: bool, name: str) -> Iterator[Path]:
    """A folder to write one file to, which gets the output's name at the end; the folder is gone then, too.

    Parameters:
        out: the output.
        overwrite: whether it may replace a file that is there.
        name: of the file inside the folder.

    Raises:
        OutputError: another process writes the same output, or there is something else in the way.
    """
    with _claimed(out) as partial:
        yield partial
        refuse_taken(out, overwrite)
        final = out.resolve()
        with reported(final, 0):
            (partial / name).replace(final)
            _sync(final.parent)
        shutil.rmtree(partial)


@contextmanager
def _claimed(out: Path) -> Iterator[Path]:
    """The folder that is written to first, this process's alone; it is gone after an error."""
    partial = partial_folder(out)
    lock = _claim(partial, out)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _claim(partial: Path, out: Path) -> int:
    """Make the folder, or take over what an interrupted process left; returns the lock."""
    import fcntl

    with reported(partial, 0):
        partial.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            partial.mkdir()
            (partial / _MARKER).touch()
    if not (partial / _MARKER).is_file():
        what = "the folder to write to first is there already, and is not from an interrupted merge"
        raise OutputError(what, place=str(partial), hint="another output, or removing it")
    lock = os.open(partial / _MARKER, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise OutputError("another process is writing this output", place=str(out), hint="waiting for it") from error
    for left in partial.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != _MARKER:
            left.unlink()
    return lock


def _publish(partial: Path, final: Path) -> None:
    """Give the finished folder its name; what was there comes back if that fails."""
    with reported(final, 0):
        _sync(partial)
        if not final.exists():
            partial.rename(final)
        else:
            kept = Path(tempfile.mkdtemp(prefix=f".{final.name}.replaced-", dir=final.parent))
            final.rename(kept / final.name)
            try:
                partial.rename(final)
            except BaseException:
                (kept / final.name).rename(final)
                kept.rmdir()
                raise
            shutil.rmtree(kept)
        _sync(final.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
