"""Raw checkpoints, opened: which tensors are in a file or folder and where their bytes are, no weight."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergekit.checkpoint import Checkpoint, Stored, open_pickle, read_header
from mergekit.checkpoint.finding import (
    INDEX,
    PICKLED,
    SAFETENSORS,
    Format,
    Weights,
    find_indexed,
    find_weights,
    has_weights,
    listed,
)
from mergekit.checkpoint.folder import read_tensors
from mergekit.errors import CheckpointError, Findings, MissingModelError, UnsupportedError
from mergekit.layout import Layout, ModuleLayout
from mergekit.plan import Model
from mergekit.plan.models import Key
from mergekit.plan.views import view_of
from mergekit.raw.prefixes import changed_prefix
from mergekit.recipe import ModelRef, Recipe

SUFFIXES = (SAFETENSORS.suffix, PICKLED.suffix, ".pt", ".pth", ".ckpt")
"""What the names of weight files end with."""

_EVERYTHING = ModuleLayout("default", (), None)
_LAYOUT = Layout((_EVERYTHING,), {}, None, False, _EVERYTHING)


def key_of(name: str) -> Key:
    """Where a tensor stands in a model without structure."""
    return (_EVERYTHING.name, None, name)


def open_raw(path: Path, notices: list[str]) -> Checkpoint:
    """Read what a raw checkpoint holds, and no weight.

    Parameters:
        path: a file of safetensors or of `torch.save`; an index of shards; or a folder with either, or with one
            weight file of any name.
        notices: is added to where a file holds more than tensors of a model, such as the state of an optimizer.

    Raises:
        MissingModelError: there is no such file or folder.
        CheckpointError: it does not hold a complete checkpoint.
        HeaderError: a weight file lies about its contents, or holds something that is not weights.
        UnsupportedError: it is a GGUF file.
    """
    try:
        return _opened(path, notices)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", place=str(error.filename or path)) from error


def _opened(path: Path, notices: list[str]) -> Checkpoint:
    remarks: list[str] = []
    root, weights = _find(path, remarks)

    def read(file: Path, _: Weights, __: list[str]) -> Sequence[Stored]:
        if file.suffix == SAFETENSORS.suffix:
            return read_header(file).tensors
        pickled = open_pickle(file)
        where = "" if file == path else f"`{file.name}`: "
        notices.extend(where + remark for remark in pickled.remarks)
        return pickled.tensors

    tensors = read_tensors(root, weights, remarks, read)
    files = tuple(root / shard for shard in weights.shards)
    return Checkpoint(path if files == (path,) else root, tensors, {}, files, tuple(remarks))


def _find(path: Path, remarks: list[str]) -> tuple[Path, Weights]:
    """The folder of the weight files, and which they are."""
    if path.is_dir():
        return _find_inside(path, remarks)
    if not path.is_file():
        raise _missing(path)
    if path.suffix == ".gguf":
        what = "GGUF files are not read here"
        raise UnsupportedError(what, place=str(path), hint=f"`mergekit convert {path} FOLDER`, and the folder")
    if path.name.endswith(INDEX):
        return path.parent, find_indexed(path, remarks)
    return path.parent, Weights(Format(path.stem, path.suffix), (path.name,), None)


def _find_inside(folder: Path, remarks: list[str]) -> tuple[Path, Weights]:
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    found = sorted(folder.glob(f"*{INDEX}")) or files
    numbered = any(form.numbered.fullmatch(file.name) for form in (SAFETENSORS, PICKLED) for file in files)
    if has_weights(folder) or numbered:
        return folder, find_weights(folder, remarks)
    if len(found) == 1:
        return _find(found[0], remarks)
    what = f"there are {len(found) or 'no'} weight files in the folder"
    names = f": {listed(file.name for file in found)}" if found else ""
    expected = f"an index, or one file that ends in {', '.join(SUFFIXES)}"
    raise CheckpointError(what + names, place=str(folder), expected=expected, hint=f"`{found[0]}`" if found else None)


def _missing(path: Path) -> MissingModelError:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, names, 1)
    hint = f"`{path.parent / similar[0]}`" if similar else None
    return MissingModelError("there is no such file or folder", place=str(path), hint=hint)


def open_all(recipe: Recipe, findings: Findings, known: Mapping[str, Path]) -> tuple[Model, ...]:
    """Open every checkpoint that a recipe names, the base or the first one first: it names the output's tensors.

    What cannot be opened is recorded as an error of the recipe, at the place that names it; then the result is empty.

    Parameters:
        recipe: the recipe.
        findings: where errors and remarks are recorded.
        known: where checkpoints are, by the names that the recipe has for them, if not there.
    """
    refs = recipe.references()
    opened = [found for ref in refs if (found := _open(recipe, ref, findings, known))]
    if len(opened) < len(refs):
        return ()
    pairs = zip(refs, opened, strict=True)
    return tuple(_model(ref, checkpoint, opened[0], refs[0], findings) for ref, checkpoint in pairs)


def _open(recipe: Recipe, ref: ModelRef, findings: Findings, known: Mapping[str, Path]) -> Checkpoint | None:
    found = [f"{entry.path}.model" for entry in recipe.models if entry.model == ref]
    place = recipe.place("base_model" if ref == recipe.base_model else found[0])
    notices: list[str] = []
    try:
        checkpoint = open_raw(known.get(str(ref.model)) or Path(ref.model.path).expanduser(), notices)
    except (CheckpointError, UnsupportedError) as error:
        problem = error.problem
        inside = f" in {problem.place}" if problem.place and str(problem.place) != ref.model.path else ""
        findings.error(f"{ref}: {problem.what}{inside}", place, problem.expected, problem.hint)
        return None
    for remark in checkpoint.remarks:
        findings.warn(f"{ref}: {remark}", place)
    for notice in notices:
        findings.notice(f"{ref}: {notice}")
    return checkpoint


def _model(ref: ModelRef, checkpoint: Checkpoint, first: Checkpoint, named: ModelRef, findings: Findings) -> Model:
    own = checkpoint.tensors
    removed, added = changed_prefix(own, first.tensors) if own and first.tensors else ("", "")
    if (removed, added) != ("", ""):
        changes = [f"without `{removed}`"] * bool(removed) + [f"with `{added}` before them"] * bool(added)
        findings.notice(f"{ref}: all names are read {' and '.join(changes)}, to be those of {named}")
    names = {key_of(added + name.removeprefix(removed)): name for name in own}
    views = {key: view_of(own[name]) for key, name in names.items()}
    return Model(ref, checkpoint, _LAYOUT, views, {key: key[2] for key in names})
