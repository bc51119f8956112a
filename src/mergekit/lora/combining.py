"""The job: adapters of one base in, one adapter out, without the base's weights and without a dense matrix."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.adapters import CONFIG
from mergekit.api.tensors import merge_tensors
from mergekit.checkpoint import Files, Stored
from mergekit.checkpoint.output import output_folder, partial_folder, refuse_occupied
from mergekit.errors import OutputError, Problem, RecipeError
from mergekit.lora.assembly import PREFIX
from mergekit.lora.blas import one_thread_each
from mergekit.lora.card import merge_card
from mergekit.lora.cores import core_space
from mergekit.lora.extraction import Running
from mergekit.lora.folder import REPORT, Spool, stored_dtype, write_tensors, write_texts, written
from mergekit.lora.members import ModuleFactors, read, refuse_other_bases
from mergekit.lora.merging import AdapterMerge
from mergekit.lora.record import merge_record
from mergekit.lora.settings import Contents, adapter_config
from mergekit.methods import Method
from mergekit.report.rooms import Room

Matrix = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Merged:
    """A module of the output.

    Parameters:
        module: its name.
        rank: of the product; 0 for none.
        stacked: rank of all products together.
        kept: share of the squared norm of the merged core that is left at this rank.
        tensors: factors and offset.
    """

    module: str
    rank: int
    stacked: int
    kept: float
    tensors: tuple[Stored, ...] = field(repr=False)


def merge_adapters(plan: AdapterMerge, out: Path, running: Running | None = None) -> Mapping[str, object]:
    """Write the merged adapter.

    The folder appears complete, by one rename, or not at all.

    Parameters:
        plan: what is merged.
        out: the folder to be made.
        running: how.

    Returns:
        The report, which is also written to ``merge_report.json``.

    Raises:
        IncompatibleModelsError: adapters come with weights of their bases, and these differ.
        NonFiniteError: an adapter holds NaN or infinity.
        RecipeError: nothing is left of the adapters.
        OutputError: the folder cannot be written, or must not be.
    """
    began, running = time.perf_counter(), running or Running()
    refuse_occupied(out, running.overwrite)
    _refuse_input(out, plan)
    refuse_other_bases(plan.members)
    running.planned(plan.read_bytes, plan.findings.warnings, plan.findings.notices)
    with output_folder(out, running.overwrite) as partial:
        with Spool(partial, stored_dtype(plan.recipe.dtype or "float32")) as spool:
            merged = _merged(plan, spool, running)
            settings = _settings(plan, merged)
            tensors = [stored for one in merged if one.rank for stored in one.tensors]
            write_tensors(partial, tensors)
        record = merge_record(plan, merged, sum(stored.spec.nbytes for stored in tensors))
        record["seconds"] = time.perf_counter() - began
        card = {"README.md": merge_card(plan, out.resolve().name)} if running.card else {}
        own = {CONFIG: written(settings), REPORT: written(record), "mergekit_config.yml": plan.recipe.text}
        write_texts(partial, {**own, **card})
    return record


def _refuse_input(out: Path, plan: AdapterMerge) -> None:
    """Nothing that is replaced may be an input."""
    swept = (out.resolve(), partial_folder(out))
    for member in plan.members:
        if any(member.adapter.file.resolve().is_relative_to(path) for path in swept):
            what = f"the output would replace one of the adapters, {member.name}"
            raise OutputError(what, place=str(out), hint="another folder")


def _settings(plan: AdapterMerge, merged: Sequence[Merged]) -> dict[str, object]:
    """adapter_config.json of the output."""
    ranks = {one.module: one.rank for one in merged if one.rank}
    if not ranks:
        what = "nothing is left of the adapters: all merged products are 0"
        raise RecipeError([Problem(what, plan.recipe.place("parameters"))])
    flipped = any(member.adapter.config.inputs_first for member in plan.members)
    base = next((member.base for member in plan.members if member.base), "")
    made = adapter_config(Contents(ranks, transposed=flipped, offsets=plan.biased), base, {})
    return {**made, "task_type": plan.members[0].settings.get("task_type")}


def _merged(plan: AdapterMerge, spool: Spool, running: Running) -> list[Merged]:
    """All modules, several at a time; no more of them is held than is worked on."""
    workers = running.workers or os.cpu_count() or 1
    with Files() as files, ThreadPoolExecutor(workers) as pool, one_thread_each(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks about parameters were told when the merge was planned
        room = Room(files)

        def merge(number: int, module: str) -> Merged:
            room.turn_to(number)
            found = _merge(plan, module, room, spool)
            known = [factors for factors in plan.factors(module) if factors]
            running.advance(sum(factors.a.spec.nbytes + factors.b.spec.nbytes for factors in known))
            return found

        return list(pool.map(merge, range(len(plan.methods)), plan.methods))


def _merge(plan: AdapterMerge, module: str, room: Room, spool: Spool) -> Merged:
    own, method = plan.factors(module), plan.methods[module]
    space = core_space([factors.product(room) if factors else None for factors in own])
    core = _by_method(method, f"{module}.weight", space.cores, plan.seed)
    b, a, kept = space.factored(core, plan.rank)
    offset = _by_method(method, f"{module}.bias", _offsets(own, room), plan.seed) if plan.biased else None
    if not a.size and offset is not None and offset.any():  # peft has no offset without a product
        b, a = np.zeros((b.shape[0], 1), np.float32), np.zeros((1, a.shape[1]), np.float32)
    first = next(factors for factors in own if factors)
    tensors = tuple(_tensors(PREFIX + module, first, a, b, offset, spool)) if a.size else ()
    return Merged(module, a.shape[0], min(core.shape), kept, tensors)


def _by_method(method: Method, name: str, tensors: Sequence[Matrix], seed: int) -> Matrix:
    """A small tensor by the engine that merges whole models; the base is 0."""
    if not tensors[0].size:
        return tensors[0]
    values = {parameter.name: getattr(method, parameter.field) for parameter in method.parameters()}
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    base = np.zeros_like(tensors[0])
    found: Matrix = merge_tensors(type(method), tensors, base=base, parameters=lists, name=name, seed=seed)
    return found


def _offsets(own: Sequence[ModuleFactors | None], room: Room) -> list[Matrix]:
    """What each adapter adds to a bias."""
    outs = next(factors for factors in own if factors).b.spec.shape[0]
    return [
        np.float32(factors.scale) * read(factors.bias, room) if factors and factors.bias else np.zeros(outs, np.float32)
        for factors in own
    ]


def _tensors(
    name: str, first: ModuleFactors, a: Matrix, b: Matrix, offset: Matrix | None, spool: Spool
) -> Iterator[Stored]:
    """Factors with the dimensions that those of the inputs have."""
    if first.embedding:
        yield spool.add(f"{name}.lora_embedding_A", a)
        yield spool.add(f"{name}.lora_embedding_B", b)
        return
    rank, ins, ones = a.shape[0], first.a.spec.shape[1:], first.b.spec.shape[2:]
    yield spool.add(f"{name}.lora_A.weight", a.reshape(rank, *ins))
    yield spool.add(f"{name}.lora_B.weight", b.reshape(b.shape[0], rank, *ones))
    if offset is not None:
        yield spool.add(f"{name}.lora_B.bias", offset)
