"""How a written model came about: the recipe and the options that lie beside it, and its models, found again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergekit.checkpoint.hub import Hub
from mergekit.errors import CheckpointError, MergekitError, Problem, VerificationError
from mergekit.making import RECIPE, Maker, maker_of
from mergekit.plan import Plan, PlanOptions
from mergekit.plan.fingerprint import header_hash, recipe_hash
from mergekit.recipe import ModelRef, decoded
from mergekit.report.record import FORMAT

REPORT = "merge_report.json"
_OPTIONS: Mapping[str, type] = {
    "shard_bytes": int,
    "copy_tokenizer": bool,
    "crop_vocabulary": bool,
    "fuse_experts": bool,
}


@dataclass(frozen=True, slots=True)
class Parent:
    """A model, or an adapter, that went into a merge.

    Parameters:
        name: as the recipe names it.
        folder: where it was.
        files: its weight files by name, with their sizes in bytes and the hashes of their headers.
    """

    name: str
    folder: Path
    files: Mapping[str, tuple[int, str]]

    def changes(self) -> Iterator[Problem]:
        """Files that are not what they were; entries of tensors may have changed without a sign of it."""
        for name, (nbytes, header) in self.files.items():
            file = self.folder / name if self.folder.is_dir() else self.folder
            if not file.is_file():
                yield Problem(f"{self.name}: the file is not there any more", str(file))
            elif (size := file.stat().st_size) != nbytes:
                yield Problem(f"{self.name}: the file has {size:,} bytes", str(file), f"{nbytes:,}, as then")
            elif _header(file) != header:
                yield Problem(f"{self.name}: the file has another header than it had then", str(file))

    @property
    def is_gone(self) -> bool:
        """Whether a file is not where it was."""
        files = [self.folder / name if self.folder.is_dir() else self.folder for name in self.files]
        return not all(file.is_file() for file in files)


def _header(file: Path) -> str | None:
    try:
        return header_hash(file)
    except (CheckpointError, OSError):
        return None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from.

    Parameters:
        folder: of the model.
        text: the recipe.
        options: with which it was carried out.
        maker: what made it.
        parents: the models and adapters.
        device: what computed, as the report says; empty if it does not say.
        others: names of models of which the recipe takes only tokens, and which are no folders here.
    """

    folder: Path
    text: str
    options: PlanOptions
    maker: Maker
    parents: tuple[Parent, ...]
    others: tuple[str, ...]
    device: Mapping[str, Any] = field(default_factory=dict)

    def changes(self) -> tuple[Problem, ...]:
        """What is known to have changed of the models since."""
        return tuple(problem for parent in self.parents for problem in parent.changes())

    def planned(self) -> Plan:
        """The plan of the merge, made again.

        Raises:
            VerificationError: a model is not where it was, or the plan takes more than looking at the models.
            MergekitError: the merge cannot be planned any more.
        """
        absent = [f"{parent.name} is not where it was ({parent.folder})" for parent in self.parents if parent.is_gone]
        absent += [f"{name} is not here" for name in self.others]
        if absent:
            raise VerificationError(absent[0])
        return self.maker.planned(self.text, self.options)


def read_origin(folder: Path) -> Origin:
    """Read where a model comes from.

    Parameters:
        folder: of the model.

    Raises:
        VerificationError: it does not say, or what it says does not fit together.
    """
    text, report = _recipe(folder / RECIPE), _report(folder / REPORT)
    if report.get("recipe_sha256") != recipe_hash(text):
        what = f"{RECIPE} is not the recipe of {REPORT}"
        raise VerificationError(what, place=str(folder), expected="the text that was merged, byte for byte")
    try:
        recorded = report.get("options", {})
        maker = maker_of(recorded)
        parents = _parents(report, maker.references(text))
        named = maker.tokens_of(text)
        options = _options(report, recorded)
        device = {key: str(report["device"][key]) for key in ("name", "version")} if "device" in report else {}
    except VerificationError as error:
        raise VerificationError(error.problem.what, place=str(folder), hint=error.problem.hint) from error
    except (LookupError, TypeError, ValueError, AttributeError, MergekitError) as error:
        what = f"{REPORT} does not tell how to merge again: {type(error).__name__} {error}"
        raise VerificationError(what, place=str(folder / REPORT)) from error
    known = {name: parent.folder for name, parent in parents.items() if not parent.is_gone}
    others = tuple(name for name in named if name not in known)
    options = replace(options, hub=Hub(known=known))
    return Origin(folder, text, options, maker, tuple(parents.values()), others, device)


def _recipe(file: Path) -> str:
    try:
        return decoded(file.read_bytes(), str(file))
    except OSError as error:
        what = f"there is no recipe in the folder: {error.strerror}"
        raise VerificationError(what, place=str(file), expected="the folder of a merge") from error


def _report(file: Path) -> dict[str, Any]:
    try:
        report = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VerificationError(f"the report cannot be read: {error}", place=str(file)) from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise VerificationError(f"it is no report of this version: it does not say `format: {FORMAT}`", place=str(file))
    return report


def _options(report: Mapping[str, Any], recorded: Mapping[str, Any]) -> PlanOptions:
    known = {name: recorded[name] for name in _OPTIONS if name in recorded}
    for name, value in [*known.items(), ("seed", report["seed"])]:
        if type(value) is not _OPTIONS.get(name, int):
            raise ValueError(f"`{name}` is {value!r}")
    return PlanOptions(**known, seed=report["seed"])


def _parents(report: Mapping[str, Any], references: Iterable[ModelRef]) -> dict[str, Parent]:
    """Models and adapters by what the recipe calls each of them; a report lists them in the recipe's order."""
    found: dict[str, Parent] = {}
    for ref, entry in zip(references, report["parents"], strict=True):
        found[str(ref.model)] = _parent(str(ref.model), entry)
        if ref.adapter is not None:
            found[str(ref.adapter)] = _parent(str(ref.adapter), entry["adapter"])
    return found


def _parent(name: str, entry: Mapping[str, Any]) -> Parent:
    files = {str(file["name"]): (int(file["bytes"]), str(file["header_sha256"])) for file in entry["files"]}
    return Parent(name, Path(entry["folder"]), files)
