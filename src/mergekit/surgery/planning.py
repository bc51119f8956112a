"""Two models → the plan of a transplant: everything is decided but the values of new rows.

Public: :class:`Graft`, :class:`Transplantation`, :func:`plan_transplant`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final

import numpy as np
import yaml

from mergekit.checkpoint import DTYPES, TensorSpec, plan_shards
from mergekit.errors import CheckpointError, IncompatibleModelsError, MissingTensorError, UnsupportedError
from mergekit.layout import Part
from mergekit.merging import inputs_of
from mergekit.plan import Operand, Plan, PlanOptions, TensorTask
from mergekit.plan.fingerprint import provenance
from mergekit.plan.memory import PROCESS, fit_tasks, physical_memory
from mergekit.plan.models import streaming_room
from mergekit.plan.tensors import MERGEABLE
from mergekit.plan.views import Held, RowMap, View, aligned
from mergekit.recipe import nearest
from mergekit.surgery.approximation import Role
from mergekit.surgery.files import config_for, files_for, vocabulary_for
from mergekit.surgery.matching import Matcher, Matches, Origin
from mergekit.surgery.matrices import READING, Matrix, Reader, Rows, Scratch, Stash, Store
from mergekit.surgery.method import Transplant
from mergekit.surgery.opening import Donor, Patient, open_donor, open_patient
from mergekit.surgery.registry import APPROXIMATIONS
from mergekit.surgery.settings import Settings, acts_on
from mergekit.surgery.tokens import Tokens
from mergekit.surgery.trained import well_trained


@final
@dataclass(frozen=True, slots=True, eq=False)
class Graft:
    """A vocabulary matrix of the output.

    Parameters:
        name: of the tensor.
        role: what it is for.
        donor: the donor's matrix for the same purpose.
        model: the model's matrix.
        matches: where the rows come from.
        new: the rows that are approximated, in the order of their tokens; they have no values until they are made.
    """

    name: str
    role: Role
    donor: View
    model: View
    matches: Matches
    new: Store

    @property
    def targets(self) -> Rows:
        """The tokens that are approximated: their ids in the donor."""
        return self.matches.ids(Origin.APPROXIMATED)

    @property
    def shared(self) -> tuple[Rows, Rows]:
        """The tokens that both models have: ids in the donor, rows in the model."""
        return self.matches.shared(self.donor.spec.shape[0])


@final
@dataclass(frozen=True, slots=True)
class Transplantation:
    """A transplant that is planned.

    Parameters:
        plan: of the output; the rows that are approximated have no values yet.
        grafts: the vocabulary matrices.
        patient: the model.
        donor: whose tokenizer it gets.
        settings: what was chosen.
    """

    plan: Plan
    grafts: tuple[Graft, ...]
    patient: Patient
    donor: Donor
    settings: Settings

    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Of each matrix, how many rows come about in which way."""
        return {graft.name: graft.matches.counts for graft in self.grafts}


def plan_transplant(
    model: str,
    donor: str,
    settings: Settings | None = None,
    options: PlanOptions | None = None,
    *,
    chat_template: str = "donor",
    scratch: Scratch | None = None,
) -> Transplantation:
    """Plan how a model gets another model's tokenizer.

    Weights are read only to find undertrained tokens.

    Parameters:
        model: as users name it.
        donor: the model whose tokenizer is taken.
        settings: how rows are found.
        options: of the plan; its seed is that of random methods.
        chat_template: "donor" or "model", or what recipes may name.
        scratch: where new rows are kept; the plan may take as much memory.

    Raises:
        MergekitError: a model cannot be opened; a model has no tokenizer or no embedding; no token is shared; or the
            job does not fit the memory it may use.
    """
    settings, options = settings or Settings(), options or PlanOptions()
    settings = replace(settings, seed=options.seed)
    patient = open_patient(model, options)
    giver = open_donor(donor, options, patient.plan.findings)
    _check_map(settings.token_map, giver.tokens, patient.tokens)
    joined = replace(patient.plan, models=(patient.model, giver.model))
    with inputs_of(joined) as files:
        matchers = _Matchers.of(patient, giver, settings, files)
    scratch = scratch or Scratch(limit=options.max_memory or physical_memory() // 4)
    builder = _Builder(patient, giver, settings, matchers, scratch)
    tasks = builder.tasks()
    plan = _written(joined, patient, giver, tasks, builder.rows, settings, options, chat_template)
    peak = max(plan.memory.peak + _held(builder.grafts, scratch), PROCESS + _working(builder.grafts, scratch, settings))
    plan = replace(plan, memory=replace(plan.memory, peak=peak))
    return Transplantation(plan, tuple(builder.grafts), patient, giver, settings)


def _held(grafts: Sequence[Graft], scratch: Scratch) -> int:
    """Bytes of new rows; those in a file do not count."""
    sizes = (4 * graft.new.shape[0] * graft.new.shape[1] for graft in grafts)
    return sum(size for size in sizes if size <= scratch.small)


def _working(grafts: Sequence[Graft], scratch: Scratch, settings: Settings) -> int:
    """Bytes that approximating takes at most: rows of shared tokens twice, a batch, and matrices of both widths."""
    most = 0
    for graft in grafts:
        widths = [view.spec.shape[1] for view in (graft.donor, graft.model)]
        rows = sum(min(4 * graft.shared[0].size * width, scratch.small) for width in widths)
        batch = min(2 * scratch.entries, 8 * graft.targets.size * settings.k * sum(widths))
        most = max(most, 2 * rows + 8 * batch + 8 * 6 * sum(width**2 for width in widths) + READING)
    return _held(grafts, scratch) + most


def _check_map(token_map: Mapping[str, str], donor: Tokens, model: Tokens) -> None:
    pairs = (("donor", donor, token_map), ("model", model, token_map.values()))
    for which, tokens, texts in pairs:
        unknown = next((text for text in cast("Iterable[str]", texts) if text not in tokens.table.ids), None)
        if unknown is not None:
            close = nearest(unknown, tokens.table.added)
            what = f"the token map names {unknown!r}, which is no token of the {which}"
            raise CheckpointError(what, place=tokens.table.place, hint=f"`{close}`" if close else None)


@final
@dataclass(frozen=True, slots=True)
class _Matchers:
    """Finds the origins of the rows of each matrix.

    Parameters:
        donor, model: the tokens.
        settings: what was chosen.
        trusted: tokens of the model whose rows are good; None for all.
        junk: tokens of the donor that get zeros.
    """

    donor: Tokens
    model: Tokens
    settings: Settings
    trusted: frozenset[int] | None = None
    junk: frozenset[int] = frozenset()

    @classmethod
    def of(cls, patient: Patient, donor: Donor, settings: Settings, files: Reader) -> _Matchers:
        """Look for undertrained tokens, if that is asked for."""
        plain = cls(donor.tokens, patient.tokens, settings)
        if not settings.magikarp:
            return plain
        own = Donor(patient.model, patient.tokens)
        good, given = (_trained(each, files) for each in (own, donor))
        heights = (donor.matrix("embedding").spec.shape[0], own.matrix("embedding").spec.shape[0])
        known = plain.matcher(None, *heights).match()
        pairs = zip(*(part.tolist() for part in known.shared(heights[0])), strict=True)
        twins = dict(pairs)
        trusted = frozenset(row for number, row in twins.items() if row in good and number in given)
        junk = frozenset(
            number for number in donor.tokens.texts if number not in given and twins.get(number, -1) not in good
        )
        return replace(plain, trusted=trusted, junk=junk)

    def matcher(self, role: Role | None, donor_rows: int, model_rows: int) -> Matcher:
        """What finds the rows of a matrix, or without a role the rows of equal tokens only, good or not."""
        exact = Matcher(donor=self.donor, model=self.model, donor_rows=donor_rows, model_rows=model_rows)
        if role is None:
            return exact
        return replace(
            exact,
            prefixes=acts_on(self.settings.prefix_match, role),
            twins=acts_on(self.settings.byte_match, role),
            blind=APPROXIMATIONS[self.settings.approximation_method].blind,
            token_map=self.settings.token_map,
            trusted=self.trusted,
            junk=self.junk,
        )


def _trained(donor: Donor, files: Reader) -> frozenset[int]:
    embedding, head = donor.matrix("embedding"), donor.matrix("head")
    matrix = Matrix(embedding, files)
    return well_trained(donor.tokens, matrix, None if head is embedding else Matrix(head, files))


@final
class _Builder:
    """Makes the tasks of the output's tensors.

    Parameters:
        patient: the model.
        donor: whose tokens it gets.
        settings: what was chosen.
        matchers: find the rows.
        scratch: where new rows are kept.
    """

    def __init__(
        self, patient: Patient, donor: Donor, settings: Settings, matchers: _Matchers, scratch: Scratch
    ) -> None:
        self.patient, self.donor, self.matchers, self.scratch = patient, donor, matchers, scratch
        self.grafts: list[Graft] = []
        size, multiple = donor.tokens.table.size, settings.pad_to_multiple_of or 1
        height = max(size, donor.matrix("embedding").spec.shape[0]) if settings.donor_padding else size
        self.rows = height + -height % multiple
        self.padding = self.rows - size

    def tasks(self) -> tuple[TensorTask, ...]:
        """A task for each tensor of the model.

        Raises:
            MissingTensorError: none of them is known as its embedding.
        """
        parts, model = self.patient.model.layout.parts, self.patient.model
        tasks = tuple(self._task(task, parts[task.out.name]) for task in self.patient.plan.tasks)
        if not self.grafts:
            what = f"{model.ref} has no matrix that is known as its embedding"
            raise MissingTensorError(what, place=str(model.checkpoint.root))
        return tasks

    def _task(self, task: TensorTask, part: Part) -> TensorTask:
        view = task.operands[0].view
        if part.vocab_axis is None:
            self._remark(view, part)
            return task
        if view.spec.dtype.name not in MERGEABLE:
            what = f"`{task.out.name}` is stored as {view.spec.dtype.title}, of which no rows can be made"
            raise UnsupportedError(what, hint="the unquantised weights of the model")
        if part.role == "head_bias":
            made = self._bias(view, part.vocab_axis)
        else:
            made = self._matrix(task.out.name, view, "head" if part.role == "head" else "embedding")
        spec = TensorSpec(task.out.name, task.out.dtype, made.spec.shape)
        return TensorTask(spec, Transplant(), (Operand(0, made),), False)

    def _remark(self, view: View, part: Part) -> None:
        """Warn of a matrix that may have a row for each token, too."""
        own, shape = self.patient.model.embedding, view.spec.shape
        if own is not None and part.layer is None and len(shape) == 2 and shape[0] == own.spec.shape[0] > 0:
            what = f"`{view.spec.name}` has as many rows as the embedding, and is left as it is"
            self.patient.plan.findings.warn(what)

    def _bias(self, view: View, axis: int) -> View:
        """The values of known tokens, and zeros; also of tokens that were left out as undertrained."""
        height = view.spec.shape[axis]
        rows = self.matchers.matcher(None, 0, height).match().rows
        known = np.concatenate([rows, np.full(self.padding, -1)])
        kept = known >= 0
        starts = np.concatenate([[0], np.cumsum(kept)])
        return aligned((view,), 0, RowMap(starts, np.zeros(int(kept.sum()), np.int64), known[kept]), axis)

    def _matrix(self, name: str, view: View, role: Role) -> View:
        model = self.patient.model
        giving = self.donor.matrix("embedding" if model.tied else role)
        matches = self.matchers.matcher(role, giving.spec.shape[0], view.spec.shape[0]).match()
        targets, width = matches.ids(Origin.APPROXIMATED), view.spec.shape[1]
        new = self.scratch.rows(targets.size, width)
        held = Held(TensorSpec(name, DTYPES["F32"], new.shape), new.flat if isinstance(new, Stash) else new.reshape(-1))
        graft = Graft(name, role, giving, view, matches, new)
        self._check(graft)
        self.grafts.append(graft)
        return aligned((view, held), 0, _row_map(matches, self.padding))

    def _check(self, graft: Graft) -> None:
        settings, findings = self.matchers.settings, self.patient.plan.findings
        count, method = graft.shared[0].size, settings.approximation_method
        zeros = graft.matches.ids(Origin.ZERO).size - len(self.matchers.junk)
        if zeros > 0:
            findings.warn(f"`{graft.name}`: {zeros:,} tokens of the donor have no row there, and get zeros")
        if APPROXIMATIONS[method].blind or not graft.targets.size:
            return
        if not count:
            what = f"{self.patient.model.ref} and {self.donor.model.ref} share no token, so {method} cannot learn"
            raise IncompatibleModelsError(what, hint="`--approximation-method subword`, which needs none")
        if method in _SPARSE and count < settings.k:
            findings.warn(f"`--k {settings.k}` is more than the {count:,} tokens that are shared; {count:,} are used")


_SPARSE = ("omp", "mp_rope", "stb", "common_interpolation")  # what looks at k


def _row_map(matches: Matches, padding: int) -> RowMap:
    """Rows of the model (matrix 0) and new ones (matrix 1); zeros where there is neither; the mean behind them."""
    new = matches.origins == Origin.APPROXIMATED
    used = new | (matches.rows >= 0)
    starts = np.concatenate([[0], np.cumsum(used)])
    origins = np.where(new, np.cumsum(new) - 1, matches.rows)
    return RowMap(starts, new[used].astype(np.int64), origins[used], padding)


def _written(
    plan: Plan,
    patient: Patient,
    donor: Donor,
    tasks: tuple[TensorTask, ...],
    rows: int,
    settings: Settings,
    options: PlanOptions,
    template: str,
) -> Plan:
    vocabulary = vocabulary_for(patient, donor, rows)
    files = files_for(patient, vocabulary, donor, template)
    chosen = {**settings.chosen(), **({} if template == "donor" else {"chat_template": template})}
    text = _recipe_text(plan, chosen)
    texts = {**files.texts, "config.json": config_for(patient, vocabulary), "mergekit_config.yml": text}
    plan.findings.raise_errors(options.strict)
    room = streaming_room(plan.models, options.hub)
    return replace(
        plan,
        recipe=replace(plan.recipe, method=Transplant.name, text=text),
        method=Transplant,
        tasks=tasks,
        shards=plan_shards([task.out for task in tasks], options.shard_bytes, provenance(text)),
        copies=files.copies,
        texts=texts,
        memory=fit_tasks(tasks, options.workers, options.max_memory, room),
        options={"shard_bytes": options.shard_bytes, "tokensurgeon": chosen},
    )


def _recipe_text(plan: Plan, chosen: Mapping[str, Any]) -> str:
    """What was asked for, as it is kept beside the weights."""
    model, donor = (str(model.ref) for model in plan.models)
    content = {"tokensurgeon": {"model": model, "donor": donor, **chosen}}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
