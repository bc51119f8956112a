"""Check that a written model is whole, is a model, and is what its report says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit.checkpoint import Files
from mergekit.checkpoint.finding import SAFETENSORS
from mergekit.errors import CheckpointError, Problem
from mergekit.layout import Layout, read_layout
from mergekit.layout.stacks import count_keys
from mergekit.plan import Plan
from mergekit.plan.fingerprint import header_hash
from mergekit.report.claims import Claims, TensorClaim, read_claims
from mergekit.report.loading import try_loading
from mergekit.report.opened import REPORT, Folder, open_folder, parsed_json
from mergekit.report.parents import SAMPLE, Parents
from mergekit.report.weights import Weight, weigh_all
from mergekit.tokenizer.proof import prove
from mergekit.tokenizer.tables import FILE, parse_table

_INDEX = "model.safetensors.index.json"
_ROUNDED = 1e-6  # relative difference of norms that another machine may find: grains are summed in float32


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check of a model folder found.

    Parameters:
        folder: the folder.
        tensors: how many tensors could be found.
        bytes: their size.
        problems: everything that is wrong.
        checked: what was looked at, in words.
        remarks: what is there, is not used, and does not matter to a loader; and what could not be checked.
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


def verify_folder(out: Path, *, plan: Plan | None = None, full: bool = False) -> Verification:
    """Read a model folder from end to end and collect everything that is wrong with it.

    Without merge_report.json the checks that need it are left out. Weights are read in stripes, on all cores.

    Parameters:
        out: the folder; or a file, of which headers and values are checked.
        plan: of the merge, made again; then the model is held against its parents as well.
        full: compare all tensors with the parents, not only some; and ask transformers whether it would load the model.

    Raises:
        MissingModelError: there is no such folder.
    """
    problems: list[Problem] = []
    claims = _claims(out, problems)
    folder = open_folder(out, raw=claims.raw if claims else out.is_file() and out.suffix == SAFETENSORS.suffix)
    checked, remarks = [f"headers of {len(folder.files)} weight files"], list(folder.remarks)
    problems += folder.problems
    if not folder.raw:
        checked = ["config.json", *checked, "layer count"]
        problems += wrong_layers(folder.layout, folder.config, out / "config.json")
    if (out / _INDEX).is_file():
        checked.append("index")
        problems += _wrong_index(folder)
    if (out / FILE).is_file():
        checked.append(FILE)
        problems += _wrong_tokenizer(folder, plan)
    if claims is not None:
        checked.append(REPORT)
        problems += [*_wrong_shards(folder, claims), *_wrong_tensors(folder, claims)]
    checked.append("values and checksums of all weights" if claims else "values of all weights")
    with Files() as files:
        problems += _wrong_values(files, folder, claims)
        if claims is not None and plan is not None:
            checked.append(f"distances of {'all' if full else f'about {SAMPLE}'} tensors from the parents")
            problems += _wrong_offspring(files, folder, claims, plan, full)
    if full and not folder.raw:
        loading = try_loading(out)
        problems += loading.problems
        checked += [] if loading.doubt else ["transformers"]
        remarks += [loading.doubt] if loading.doubt else []
    found = tuple(dict.fromkeys(problems))
    return Verification(out, len(folder.tensors), folder.nbytes, found, tuple(checked), tuple(remarks))


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


def _wrong_index(folder: Folder) -> Iterator[Problem]:
    """The size in the index, if all that it names is there; opening the folder has followed the names already."""
    parsed = parsed_json(folder.root / _INDEX)
    index = parsed if isinstance(parsed, dict) else {}
    metadata, names = index.get("metadata"), index.get("weight_map")
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(names, dict) and names.keys() == folder.tensors.keys() and claimed != folder.nbytes:
        what = f"`metadata.total_size` of the index is {claimed}"
        yield Problem(what, str(folder.root / _INDEX), f"{folder.nbytes}, the size of all tensors")


def _wrong_tokenizer(folder: Folder, plan: Plan | None) -> Iterator[Problem]:
    """Complaints of the library that will read the file; texts are compared with the donor's if that was taken over."""
    file, name = folder.root / FILE, folder.layout.embedding
    rows = folder.tensors[name].spec.shape[0] if name else None
    taken_over = plan is not None and plan.recipe.tokenizer is None
    try:
        text = file.read_text("utf-8")
        table = parse_table(text, str(file))
        unedited = plan.models[0].checkpoint.text(FILE) if plan and taken_over else None
        complaints = prove(table, text, rows, unedited)
    except CheckpointError as error:
        yield error.problem
    except (OSError, ValueError) as error:
        yield Problem(f"{FILE} cannot be read: {error}", str(file))
    else:
        yield from (Problem(complaint, str(file)) for complaint in complaints)


def _claims(root: Path, problems: list[Problem]) -> Claims | None:
    file = root / REPORT
    if not file.is_file():
        return None
    parsed = parsed_json(file)
    try:
        if not isinstance(parsed, Problem):
            return read_claims(parsed)
    except ValueError as error:
        parsed = Problem(f"{file.name} is no report of this version: {error}", str(file))
    problems.append(parsed)
    return None


def _wrong_shards(folder: Folder, claims: Claims) -> Iterator[Problem]:
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


def _wrong_tensors(folder: Folder, claims: Claims) -> Iterator[Problem]:
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
    parameters = sum(stored.spec.count for stored in folder.tensors.values())
    if parameters != claims.parameters and not lacking and not foreign:
        yield Problem(f"the model has {parameters:,} parameters", place, f"{claims.parameters:,}, as reported")
    if claims.base_only:
        yield Problem(
            "the model equals its base everywhere: every tensor with a base has distance 0 to it",
            str(folder.root / REPORT),
            hint="another base_model, or other weights",
        )


def _wrong_values(files: Files, folder: Folder, claims: Claims | None) -> Iterator[Problem]:
    weights: dict[str, Weight] = {}
    for stored, found in weigh_all(files, list(folder.tensors.values())):
        name, place = stored.spec.name, str(stored.extent.file)
        if isinstance(found, Problem):
            yield found
            continue
        weights[name] = found
        claim = claims.tensors.get(name) if claims else None
        if found.broken:
            what = f"{found.broken} of {stored.spec.count} entries of `{name}` are infinite or not a number"
            yield Problem(what, place)
        elif claim and (difference := _changed(found, claim)):
            yield Problem(f"the values of `{name}` have changed since they were merged: {difference}", place)
    yield from _ignored_head(folder, weights)


def _changed(found: Weight, claim: TensorClaim) -> str:
    """What shows that values are not those of the report."""
    if claim.checksum is not None and found.checksum != claim.checksum:
        return f"their checksum is {found.checksum:016x}, reported {claim.checksum:016x}"
    if claim.norm is not None and not math.isclose(found.norm, claim.norm, rel_tol=_ROUNDED):
        return f"their norm is {found.norm!r}, reported {claim.norm!r}"
    return ""


def _ignored_head(folder: Folder, weights: Mapping[str, Weight]) -> Iterator[Problem]:
    """An output head of its own, in a model whose config has loaders use the embedding instead."""
    head, embedding = folder.layout.head or "", folder.layout.embedding or ""
    if not (folder.layout.tied and head in weights and embedding in weights):
        return
    kinds = {(folder.tensors[name].spec.dtype, folder.tensors[name].spec.shape) for name in (head, embedding)}
    if len(kinds) == 1 and weights[head].checksum != weights[embedding].checksum:
        yield Problem(
            f"`{head}` differs from `{embedding}`, and loaders ignore it: config.json ties both",
            str(folder.root / "config.json"),
            "`tie_word_embeddings: false`",
        )


def _wrong_offspring(files: Files, folder: Folder, claims: Claims, plan: Plan, full: bool) -> Iterator[Problem]:
    """What is not as the plan of the merge has it: the tie of both vocabulary matrices, and the values."""
    planned = json.loads(plan.texts.get("config.json", "{}"))
    shapes = {name: stored.spec.shape for name, stored in folder.tensors.items()}
    if not folder.raw and (tied := read_layout(shapes, planned).tied) != folder.layout.tied:
        said = ["config.json does not tie the embedding and the output head", "config.json ties both"]
        yield Problem(said[folder.layout.tied], str(folder.root / "config.json"), f"{said[tied]}, as planned")
    parents = Parents(plan, folder.tensors, files)
    yield from parents.wrong_distances(claims, full)
    if not claims.base_only:
        yield from parents.the_same()


def _listed(names: Iterable[str], most: int = 3) -> str:
    known = list(names)
    rest = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(f"`{name}`" for name in known[:most]) + rest
