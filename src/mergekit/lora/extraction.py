"""The job: a fine-tune and its base in, a PEFT adapter out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mergekit.adapters import CONFIG
from mergekit.checkpoint.hub import Hub
from mergekit.checkpoint.output import output_folder, partial_folder, refuse_occupied
from mergekit.checkpoint.reading import Files
from mergekit.errors import BudgetError, IncompatibleModelsError, OutputError, Problem, UnsupportedError
from mergekit.lora.assembly import assemble
from mergekit.lora.blas import one_thread_each
from mergekit.lora.card import extraction_card
from mergekit.lora.checking import check_adapter
from mergekit.lora.decomposition import Goal
from mergekit.lora.folder import REPORT, Spool, stored_dtype, write_tensors, write_texts, written
from mergekit.lora.measuring import Finding, Measuring
from mergekit.lora.pairs import Pairs, open_pairs
from mergekit.lora.record import extraction_record
from mergekit.lora.settings import adapter_config
from mergekit.lora.units import Choice, Unit, divide
from mergekit.plan.memory import PROCESS, physical_memory
from mergekit.recipe import ModelRef
from mergekit.report.rooms import Room


@dataclass(frozen=True, slots=True)
class Wish:
    """What kind of adapter is wanted.

    Parameters:
        goal: how many singular values are kept.
        choice: which modules are held, and how.
        distribute: give the roots of the singular values to both factors, instead of all to A.
        exact: decompose by LAPACK's SVD, whatever the size.
        dtype: of the factors: "float32", "bfloat16" or "float16".
        seed: of the random vectors by which large matrices are sketched.
    """

    goal: Goal = field(default_factory=Goal)
    choice: Choice = field(default_factory=Choice)
    distribute: bool = True
    exact: bool = False
    dtype: str = "float32"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Running:
    """How the job is carried out.

    Parameters:
        workers: threads, by default one per core.
        max_memory: bytes, by default a quarter of the machine's memory.
        check: apply the adapter to the base when it is written, and compare that with the fine-tune.
        overwrite: replace an adapter or a model that is there.
        card: write README.md.
        invocation: the command, for README.md.
        planned: told the bytes that will be read, warnings and notices, before a weight is.
        advance: told, from any thread, of bytes that were read.
    """

    workers: int | None = None
    max_memory: int | None = None
    check: bool = False
    overwrite: bool = False
    card: bool = True
    invocation: str | None = None
    planned: Callable[[int, Sequence[Problem], Sequence[str]], None] = lambda _bytes, _warnings, _notices: None
    advance: Callable[[int], None] = lambda _bytes: None


@dataclass(frozen=True, slots=True)
class Extraction:
    """An adapter before a weight is read.

    Parameters:
        base, tuned: as the user named them.
        pairs: both, opened.
        units: what the adapter may hold.
        left_out: names of tensors that it does not, by the reason.
        wish: what was asked for.
    """

    base: ModelRef
    tuned: ModelRef
    pairs: Pairs
    units: tuple[Unit, ...]
    left_out: Mapping[str, tuple[str, ...]]
    wish: Wish

    @property
    def read_bytes(self) -> int:
        """Bytes of both models that are read; what is held whole is read once more, and what is checked."""
        return sum(unit.nbytes for unit in self.units)

    @property
    def resized(self) -> tuple[int, int] | None:
        """Rows of the embedding in the base and in the fine-tune, if they are not as many."""
        models = (self.pairs.base, self.pairs.tuned)
        first, second = (model.embedding.spec.shape[0] if model.embedding else 0 for model in models)
        return (first, second) if first != second else None


def plan_extraction(base: ModelRef, tuned: ModelRef, wish: Wish | None = None, hub: Hub | None = None) -> Extraction:
    """Decide what an adapter will hold; no weight is read.

    Parameters:
        base: the model that it is for; any that recipes can name.
        tuned: the fine-tune.
        wish: what is wanted.
        hub: how models are taken from the hub.

    Raises:
        CheckpointError: a model cannot be read.
        UnsupportedError: a model is quantised in a way that is not read; or no module that is asked for can be
            decomposed, of which peft wants one.
    """
    wish = wish or Wish()
    pairs = open_pairs(base, tuned, hub)
    division = divide(pairs, wish.choice)
    found = Extraction(base, tuned, pairs, division.units, division.left_out, wish)
    if not any(unit.matrix[0] for unit in found.units):
        reasons = "; ".join(f"{len(names)} tensors are left out, as {why}" for why, names in found.left_out.items())
        raise UnsupportedError(
            "there is no matrix to decompose" + (f": {reasons}" if reasons else ""),
            place=f"{tuned} and {base}",
            hint="other `--include-regex`, `--exclude-regex` or `--save-module`" if reasons else None,
        )
    _remark(found)
    return found


def _remark(found: Extraction) -> None:
    findings = found.pairs.findings
    for reason, names in found.left_out.items():
        if reason in ("they are excluded", "they cannot be decomposed"):
            findings.notice(f"{len(names)} tensors are left out, as {reason}: {_listed(names)}")
        else:
            findings.warn(f"{len(names)} tensors are not in the adapter, as {reason}: {_listed(names)}")
    if found.resized:
        rows = "{} rows in the base and {} in the fine-tune".format(*found.resized)
        findings.warn(f"the vocabulary has {rows}: resize the base to {found.resized[1]} before the adapter is loaded")
        if found.wish.choice.embed_lora:
            findings.warn("`--embed-lora` has no effect on embedding and head: they have other rows in the fine-tune")
    elif found.wish.choice.embed_lora and found.pairs.base.tied:
        findings.notice(
            "the embedding is the output head as well: peft applies its product to both once the adapter is merged, "
            "and to the embedding alone before"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def extract_lora(plan: Extraction, out: Path, running: Running | None = None) -> Mapping[str, object]:
    """Write the adapter.

    The folder appears complete, by one rename, or not at all.

    Parameters:
        plan: what it will hold.
        out: the folder to be made.
        running: how.

    Returns:
        The report, which is also written to ``merge_report.json``.

    Raises:
        IncompatibleModelsError: the models do not differ, or not in what an adapter can hold.
        NonFiniteError: a model holds NaN or infinity.
        BudgetError: the largest matrix does not fit the memory that may be used.
        VerificationError: the check was asked for and the adapter is not what the report says.
        OutputError: the folder cannot be written, or must not be.
    """
    began, running = time.perf_counter(), running or Running()
    refuse_occupied(out, running.overwrite)
    _refuse_input(out, plan)
    workers = _workers(plan, running)
    running.planned(plan.read_bytes * (1 + running.check), plan.pairs.findings.warnings, plan.pairs.findings.notices)
    with output_folder(out, running.overwrite) as partial:
        with Spool(partial, stored_dtype(plan.wish.dtype)) as spool:
            findings = _measured(plan, spool, workers, running.advance)
            _refuse_nothing(plan, findings)
            tensors, contents = assemble(findings, spool)
            base = plan.base.model.path
            config = adapter_config(contents, base, plan.pairs.base.checkpoint.config)
            write_tensors(partial, tensors)
            write_texts(partial, {CONFIG: written(config)})
            record = extraction_record(plan, findings, contents, sum(stored.spec.nbytes for stored in tensors))
        if running.check:
            record["check"] = check_adapter(plan.pairs, findings, partial, running.advance)
        record["seconds"] = time.perf_counter() - began
        texts = {REPORT: written(record)}
        if running.card:
            texts["README.md"] = extraction_card(plan, record, out.resolve().name, running.invocation)
        write_texts(partial, texts)
    return record


def _refuse_input(out: Path, plan: Extraction) -> None:
    """Nothing that is replaced may be an input, or hold one."""
    swept = (out.resolve(), partial_folder(out))
    for model in (plan.pairs.base, plan.pairs.tuned):
        roots = [model.checkpoint.root, *model.checkpoint.shards, *([model.adapter.root] if model.adapter else [])]
        if any(place.resolve().is_relative_to(path) for place in roots for path in swept):
            what = f"the output would replace one of the models, {model.ref}"
            raise OutputError(what, place=str(out), hint="another folder")


def _room(unit: Unit, goal: Goal, exact: bool) -> int:
    """Bytes that a matrix takes while it is decomposed."""
    _, outs, ins = unit.matrix
    short, long = min(outs, ins), max(outs, ins)
    if exact:
        return short * long * (4 + 8 + 3 * 8)
    held = min(short, goal.max_rank + 48)
    return short * long * 4 + (short + long) * held * 24 + 3 * 8 * min(short, 2 * held + 512) ** 2 + (96 << 20)


def _workers(plan: Extraction, running: Running) -> int:
    limit = running.max_memory or physical_memory() // 4
    most = max(_room(unit, plan.wish.goal, plan.wish.exact) for unit in plan.units)
    if limit < PROCESS + most:
        need = -(-(PROCESS + most) // 1_000_000)
        raise BudgetError(
            f"the decomposition of the largest matrix does not fit into {limit / 1e6:.0f} MB",
            expected=f"at least {need} MB",
            hint=f"`--max-memory {need}MB`" + (", or leaving out `--exact`" if plan.wish.exact else ""),
        )
    return max(1, min(running.workers or os.cpu_count() or 1, len(plan.units), (limit - PROCESS) // most))


def _measured(plan: Extraction, spool: Spool, workers: int, advance: Callable[[int], None]) -> list[Finding]:
    """What was done to each module, the largest ones first, so that threads end together."""
    wish = plan.wish
    with Files() as files, ThreadPoolExecutor(workers) as pool, one_thread_each():
        room, tied = Room(files), plan.pairs.base.tied
        measuring = Measuring(wish.goal, wish.exact, wish.distribute, wish.seed, tied, spool, room, advance)
        order = sorted(range(len(plan.units)), key=lambda index: -plan.units[index].nbytes)
        found = dict(zip(order, pool.map(lambda at: measuring.measure(at, plan.units[at]), order), strict=True))
    return [found[index] for index in range(len(plan.units))]


def _refuse_nothing(plan: Extraction, findings: Sequence[Finding]) -> None:
    if any(found.held == "products" for found in findings):
        return
    place = f"{plan.tuned} and {plan.base}"
    kept = [found.unit.module for found in findings if found.held != "nothing"]
    if kept:
        what = f"no matrix differs, only {_listed(kept)}; peft loads no adapter without a product"
        raise IncompatibleModelsError(what, place=place)
    if any(found.norm for found in findings):
        what = f"no singular value is above {plan.wish.goal.epsilon:g}: there is nothing to put into an adapter"
        raise IncompatibleModelsError(what, place=place, hint="a smaller `--sv-epsilon`")
    what = "the models do not differ: there is nothing to put into an adapter"
    raise IncompatibleModelsError(what, place=place, expected="a fine-tune and its base")
