"""Check that a written model is whole, is a model, and is what its report says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit.checkpoint import Files, Stored, open_checkpoint, read_header
from mergekit.checkpoint.finding import SAFETENSORS
from mergekit.errors import CheckpointError, MissingModelError, Problem
from mergekit.kernels import RAW
from mergekit.layout import Layout, read_layout
from mergekit.layout.stacks import count_keys
from mergekit.plan.fingerprint import header_hash
from mergekit.plan.tensors import MERGEABLE
from mergekit.report.claims import Claims, TensorClaim, read_claims
from mergekit.report.record import machine
from mergekit.report.weights import Weight, weigh, weigh_all

_INDEX = "model.safetensors.index.json"
_REPORT = "merge_report.json"
_TOKENIZER = "tokenizer.json"
_ELSEWHERE = 1e-6  # relative difference of norms that another machine may find: grains are summed in float32


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check of a model folder found.

    Parameters:
        folder: the folder.
        tensors: how many tensors could be found.
        bytes: their size.
        problems: everything that is wrong.
        checked: what was looked at, in words.
        remarks: what is there, is not used, and does not matter to a loader.
    """

    folder: Path
    tensors: int
    bytes: int
    problems: tuple[Problem, ...]
    checked: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class _Folder:
    """What of a folder can be read.

    Parameters:
        root: the folder.
        tensors: all tensors of all files whose headers can be read.
        config: contents of config.json; empty if there is none.
        layout: what both say the model is.
        problems: why a loader would stumble.
        remarks: what it would pass over.
    """

    root: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, object]
    layout: Layout
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(stored.spec.nbytes for stored in self.tensors.values())

    @property
    def files(self) -> dict[str, Path]:
        """The files whose headers can be read, by name."""
        files = {stored.extent.file for stored in self.tensors.values()}
        return {file.relative_to(self.root).as_posix(): file for file in sorted(files)}


def verify_folder(out: Path) -> Verification:
    """Read a model folder from end to end and collect everything that is wrong with it.

    Without merge_report.json the checks that need it are left out. Weights are read in stripes, on all cores.

    Parameters:
        out: the folder.

    Raises:
        MissingModelError: there is no such folder.
    """
    folder = _open(out)
    problems = list(folder.problems)
    checked = ["config.json", f"headers of {len(folder.files)} weight files", "layer count"]
    problems += wrong_layers(folder.layout, folder.config, out / "config.json")
    if (out / _INDEX).is_file():
        checked.append("index")
        problems += _wrong_index(folder)
    if (out / _TOKENIZER).is_file():
        checked.append(_TOKENIZER)
        problems += _wrong_tokenizer(folder)
    claims = _claims(out, problems)
    if claims is not None:
        checked.append(_REPORT)
        problems += [*_wrong_shards(folder, claims), *_wrong_tensors(folder, claims)]
    checked.append("values and norms of all weights" if claims else "values of all weights")
    problems += _wrong_values(folder, claims)
    found = tuple(dict.fromkeys(problems))
    return Verification(out, len(folder.tensors), folder.nbytes, found, tuple(checked), folder.remarks)


def _open(root: Path) -> _Folder:
    """Open a folder as a loader would; if that fails, take what there is."""
    tensors: dict[str, Stored] = {}
    config: Mapping[str, object] = {}
    remarks: tuple[str, ...] = ()
    try:
        checkpoint = open_checkpoint(root)
        tensors, config = dict(checkpoint.tensors), checkpoint.config
        # A merge leaves nothing unused; pickles and GGUF files of others hold what loaders pass over.
        plain = all(shard.suffix == SAFETENSORS.suffix for shard in checkpoint.shards)
        remarks = () if plain or (root / _REPORT).is_file() else checkpoint.remarks
        problems = [Problem(remark, str(root)) for remark in checkpoint.remarks if not remarks]
    except MissingModelError:
        raise
    except CheckpointError as error:
        problems = [error.problem]
        problems += _salvage(root, tensors)
        parsed = _parsed(root / "config.json")
        config = parsed if isinstance(parsed, dict) else {}
    layout = read_layout({name: stored.spec.shape for name, stored in tensors.items()}, config)
    return _Folder(root, tensors, config, layout, tuple(problems), remarks)


def _salvage(root: Path, tensors: dict[str, Stored]) -> Iterator[Problem]:
    """Add the tensors of every file that is still readable by itself; the others are problems."""
    for file in sorted(root.glob("*.safetensors")):
        try:
            tensors |= {stored.spec.name: stored for stored in read_header(file).tensors}
        except CheckpointError as error:  # noqa: PERF203  (one bad file must not hide the next)
            yield error.problem


def _parsed(file: Path) -> Any:
    """The contents of a JSON file, or the problem with it."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return Problem(f"{file.name} cannot be read: {error}", str(file), "JSON")


def wrong_layers(layout: Layout, config: Mapping[str, object], file: Path) -> Iterator[Problem]:
    """Layer counts in config.json that fit no stack of layers and may mean one that no count fits.

    Parameters:
        layout: what the model is.
        config: contents of config.json.
        file: where it is.
    """
    stacks = layout.stacks
    taken = {key for stack in stacks for key in (stack.count_key, *stack.same_count_keys)}
    for stack in stacks:
        # A single numbered entry may serve as every layer (ALBERT).
        if stack.count_key is None and stack.count > 1:
            for key in count_keys(config):
                if key.path not in taken and key.may_count(stack.prefix) and key.value != stack.count:
                    what = f"`{key.path}` says {key.value} layers, `{stack.prefix}` has {stack.count}"
                    yield Problem(what, str(file), str(stack.count))


def _wrong_index(folder: _Folder) -> Iterator[Problem]:
    """The size in the index, if all that it names is there; opening the folder has followed the names already."""
    parsed = _parsed(folder.root / _INDEX)
    index = parsed if isinstance(parsed, dict) else {}
    metadata, names = index.get("metadata"), index.get("weight_map")
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(names, dict) and names.keys() == folder.tensors.keys() and claimed != folder.nbytes:
        what = f"`metadata.total_size` of the index is {claimed}"
        yield Problem(what, str(folder.root / _INDEX), f"{folder.nbytes}, the size of all tensors")


def _wrong_tokenizer(folder: _Folder) -> Iterator[Problem]:
    file = folder.root / _TOKENIZER
    parsed = _parsed(file)
    if isinstance(parsed, Problem):
        yield parsed
        return
    try:
        largest = largest_id(parsed)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        yield Problem(f"{file.name} is no tokenizer: {type(error).__name__} {error}", str(file), "`model.vocab`")
        return
    name = folder.layout.embedding
    rows = folder.tensors[name].spec.shape[0] if name else math.inf
    if largest >= rows:
        yield Problem(f"the tokenizer has the token id {largest}, `{name}` has {rows} rows", str(file))


def largest_id(tokenizer: Any) -> int:
    """The largest token id in the contents of a tokenizer.json; -1 without tokens."""
    vocabulary = tokenizer["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = [token["id"] for token in tokenizer.get("added_tokens") or ()]
    return max(map(int, [*ids, *added]), default=-1)


def _claims(root: Path, problems: list[Problem]) -> Claims | None:
    file = root / _REPORT
    if not file.is_file():
        return None
    parsed = _parsed(file)
    try:
        if not isinstance(parsed, Problem):
            return read_claims(parsed)
    except ValueError as error:
        parsed = Problem(f"{file.name} is no report of this version: {error}", str(file))
    problems.append(parsed)
    return None


def _wrong_shards(folder: _Folder, claims: Claims) -> Iterator[Problem]:
    files = folder.files
    for name in sorted(files.keys() - claims.shards.keys()):
        yield Problem(f"`{name}` is not among the files of the report", str(folder.root))
    for name, claim in claims.shards.items():
        if name not in files:
            yield Problem(f"`{name}`, a file of the report, is not there or cannot be read", str(folder.root))
        elif (size := files[name].stat().st_size) != claim.nbytes:
            yield Problem(f"the file has {size} bytes", str(files[name]), f"{claim.nbytes}, as reported")
        elif header_hash(files[name]) != claim.header:
            yield Problem("the file has another header than the report says", str(files[name]))


def _wrong_tensors(folder: _Folder, claims: Claims) -> Iterator[Problem]:
    """Tensors that differ from the report in kind, before their values are looked at."""
    place = str(folder.root)
    if lacking := [name for name in claims.tensors if name not in folder.tensors]:
        yield Problem(f"tensors of the report are not there: {_listed(lacking)}", place)
    if foreign := [name for name in folder.tensors if name not in claims.tensors]:
        yield Problem(f"tensors are not in the report: {_listed(foreign)}", place)
    for name, claim in claims.tensors.items():
        spec = folder.tensors[name].spec if name in folder.tensors else None
        if spec and (spec.dtype.name, spec.shape) != (claim.dtype, claim.shape):
            found, said = f"{spec.dtype.name} {list(spec.shape)}", f"{claim.dtype} {list(claim.shape)}"
            yield Problem(f"`{name}` is {found}", place, f"{said}, as reported")
    if claims.base_only:
        yield Problem(
            "the model equals its base everywhere: every tensor with a base has distance 0 to it",
            str(folder.root / _REPORT),
            hint="another base_model, or other weights",
        )


def _wrong_values(folder: _Folder, claims: Claims | None) -> Iterator[Problem]:
    here = claims is not None and claims.machine == machine()
    weights: dict[str, Weight] = {}
    mergeable = [stored for stored in folder.tensors.values() if stored.spec.dtype.name in MERGEABLE]
    with Files() as files:
        for stored, found in weigh_all(files, mergeable):
            name, place = stored.spec.name, str(stored.extent.file)
            if isinstance(found, Problem):
                yield found
                continue
            weights[name] = found
            claim = claims.tensors.get(name) if claims else None
            if found.broken:
                what = f"{found.broken} of {stored.spec.count} entries of `{name}` are infinite or not a number"
                yield Problem(what, place)
            elif claim and claim.norm is not None and not _agrees(files, stored, found.norm, claim, here):
                norms = f"their norm is {found.norm!r}, reported {claim.norm!r}"
                yield Problem(f"the values of `{name}` have changed since they were merged: {norms}", place)
    yield from _ignored_head(folder, weights)


def _agrees(files: Files, stored: Stored, found: float, claim: TensorClaim, here: bool) -> bool:
    """Whether a norm is the reported one: to the last bit on the machine that reported it."""
    assert claim.norm is not None
    if not here or found == claim.norm:
        return math.isclose(found, claim.norm, rel_tol=_ELSEWHERE)
    ways = (None, *RAW)
    return any(weigh(files, stored, beside, claim.grain).norm == claim.norm for beside in ways)


def _ignored_head(folder: _Folder, weights: Mapping[str, Weight]) -> Iterator[Problem]:
    """An output head of its own, in a model whose config has loaders use the embedding instead."""
    head, embedding = folder.layout.head or "", folder.layout.embedding or ""
    if not (folder.layout.tied and head in weights and embedding in weights):
        return
    kinds = {(folder.tensors[name].spec.dtype, folder.tensors[name].spec.shape) for name in (head, embedding)}
    if len(kinds) == 1 and weights[head].norm != weights[embedding].norm:
        yield Problem(
            f"`{head}` differs from `{embedding}`, and loaders ignore it: config.json ties both",
            str(folder.root / "config.json"),
            "`tie_word_embeddings: false`",
        )


def _listed(names: Iterable[str], most: int = 3) -> str:
    known = list(names)
    rest = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(f"`{name}`" for name in known[:most]) + rest
