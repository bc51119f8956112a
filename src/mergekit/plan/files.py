"""The donor's other files: everything that is not weights or training state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mergekit.checkpoint import Checkpoint
from mergekit.checkpoint.companions import FOLDERS, TOKENIZER, is_companion, is_like


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            another_merge = (entry / "merge_report.json").exists()
            if not (entry.is_symlink() or another_merge or is_like(entry.name, FOLDERS)):
                yield from _files(entry)
        elif entry.is_file():
            yield entry


def rebuilt_files(checkpoint: Checkpoint, tokenizer: bool = True) -> dict[str, str]:
    """The companions of a model's weights that are not in its folder, by their names in the output.

    Parameters:
        checkpoint: the donor.
        tokenizer: whether tokenizer and chat template are among them.
    """
    wanted = (name for name in checkpoint.texts if is_companion(name) and (tokenizer or not is_like(name, TOKENIZER)))
    return {name: checkpoint.texts[name]() for name in wanted}


def copied_files(root: Path, tokenizer: bool = True) -> Mapping[str, Path]:
    """The files of a model folder that a merge takes over as they are, by their names in the output.

    Parameters:
        root: the donor's folder; a model that is one file has no others.
        tokenizer: whether tokenizer and chat template are among them.
    """
    chosen = {}
    for file in _files(root) if root.is_dir() else ():
        name = file.relative_to(root).as_posix()
        if is_companion(name) and (tokenizer or not is_like(file.name, TOKENIZER)):
            chosen[name] = file
    return chosen
