"""A model of which a part was merged by itself: the whole again, with the merged part in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from mergekit.checkpoint import plan_shards
from mergekit.checkpoint.finding import listed
from mergekit.errors import Findings, IncompatibleModelsError
from mergekit.merging import JobOptions, Progress, carry_out
from mergekit.methods.passthrough import Passthrough
from mergekit.plan import VOCABULARY, Leftover, Model, Operand, Plan, PlanOptions, TensorTask
from mergekit.plan.files import copied_files, rebuilt_files
from mergekit.plan.fingerprint import provenance
from mergekit.plan.memory import fit_tasks
from mergekit.plan.models import open_models, streaming_room
from mergekit.plan.tensors import tensor_task
from mergekit.plan.written_config import written_config
from mergekit.recipe import Recipe, read_recipe, reference

_SHOWN = 3  # tensors named in a message
_UNKNOWN = "the whole model has no tensor for it"
_MISSHAPEN = "the whole model has another shape there"


@dataclass(frozen=True, slots=True)
class Filling:
    """Which tensor of a whole model is replaced by which one of a part.

    Parameters:
        prefix: what stands before the part's names in the whole; None to find it out.
        renamed: what names of the part begin with, and what the whole has instead; comes before `prefix`.
        shapes: of a tensor that has another shape in the whole: "error"; "base" to leave the whole's tensor; "sub" to
            take the part's.
    """

    prefix: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    shapes: Literal["error", "base", "sub"] = "error"

    def names(self, part: Model, whole: Model) -> dict[str, str]:
        """The whole's names of tensors, by the part's; some may be of tensors that the whole does not have.

        Parameters:
            part: opened beside the whole.
            whole: the other model.
        """
        own = {view.spec.name: part.names[key] for key, view in part.views.items()}
        known = frozenset(view.spec.name for view in whole.views.values())
        if self.prefix is not None:
            guessed = {name: self.prefix + name for name in own}
        else:
            found = shared_prefix(own, known)
            plain = {name: found + name for name in own}
            guessed = max(plain, own, key=lambda names: sum(name in known for name in names.values()))
        return {name: self._renamed(name) or guess for name, guess in guessed.items()}

    def _renamed(self, name: str) -> str | None:
        return next((new + name[len(old) :] for old, new in self.renamed.items() if name.startswith(old)), None)


def shared_prefix(names: Mapping[str, object], known: frozenset[str]) -> str:
    """The prefix, of any number of components, with which most names are among those of a whole.

    Example:
        >>> shared_prefix({"layers.0.w": 0, "norm.w": 0}, frozenset({"a.b.layers.0.w", "a.b.norm.w", "a.norm.w", "w"}))
        'a.b.'
    """
    votes = Counter(name[:start] for name in known for start in _starts(name) if name[start:] in names)
    return min(votes, key=lambda prefix: (-votes[prefix], len(prefix), prefix), default="")


def _starts(name: str) -> Iterator[int]:
    yield 0
    yield from (place + 1 for place, letter in enumerate(name) if letter == ".")


def fill_missing(
    whole: str,
    part: str,
    out: Path,
    *,
    filling: Filling | None = None,
    options: JobOptions | None = None,
    progress: Progress | None = None,
) -> Mapping[str, object]:
    """Write a model with those of its tensors replaced that a part of it has.

    Parameters:
        whole: the complete model, which also gives config, tokenizer and other files.
        part: the other one.
        out: the folder to be made.
        filling: see :class:`Filling`.
        options: see :class:`~mergekit.merging.JobOptions`.
        progress: is told what happens.

    Raises:
        MergekitError: see :func:`plan_filling`; or the output cannot be written, or must not be.
    """
    options = options or JobOptions()
    return carry_out(lambda: plan_filling(whole, part, filling, options.plan), out, options, progress)


def plan_filling(whole: str, part: str, filling: Filling | None = None, options: PlanOptions | None = None) -> Plan:
    """Plan how a model is written with tensors of a part of it.

    Parameters:
        whole: the complete model, as users name it.
        part: the other one.
        filling: see :class:`Filling`.
        options: of planning; those about recipes, vocabularies and experts have no effect.

    Raises:
        RecipeError: a model cannot be opened.
        IncompatibleModelsError: they have no tensor in common, or tensors with unequal shapes.
    """
    filling, options = filling or Filling(), options or PlanOptions()
    recipe, findings = _recipe(whole, part, filling)
    models = open_models(recipe, findings, hub=options.hub)
    findings.raise_errors(options.strict)
    choice = _Choice(filling, models, findings)
    tasks = tuple(choice.tasks())
    donor = models[0].checkpoint
    findings.raise_errors(options.strict)
    texts = {**rebuilt_files(donor, options.copy_tokenizer), "mergekit_config.yml": recipe.text}
    return Plan(
        recipe=recipe,
        models=models,
        method=Passthrough,
        tasks=tasks,
        shards=plan_shards([task.out for task in tasks], options.shard_bytes, provenance(recipe.text)),
        copies=copied_files(donor.root, options.copy_tokenizer),
        texts={**texts, "config.json": written_config(models, (), tasks)},
        leftovers=choice.leftovers(),
        findings=findings,
        memory=fit_tasks(tasks, options.workers, options.max_memory, streaming_room(models, options.hub)),
        seed=options.seed,
        options={
            "shard_bytes": options.shard_bytes,
            "copy_tokenizer": options.copy_tokenizer,
            "filling": asdict(filling),
        },
    )


def _recipe(whole: str, part: str, filling: Filling) -> tuple[Recipe, Findings]:
    """The recipe that comes nearest, for the record."""
    told = [f"# names of the part begin with {old!r}, here {new!r}" for old, new in filling.renamed.items()]
    told += [] if filling.prefix is None else [f"# names of the part stand behind {filling.prefix!r}"]
    content = {
        "merge_method": "passthrough",
        "base_model": reference(whole).written(),
        "models": [{"model": reference(part).written()}],
        "on_missing": "base",
        **({"on_shape_mismatch": "base"} if filling.shapes == "base" else {}),
    }
    text = "\n".join(["# made by mergekit fill-missing-params", *told, yaml.safe_dump(content, sort_keys=False)])
    recipe, findings = read_recipe(text, vocabulary=VOCABULARY)
    findings.raise_errors()
    assert recipe is not None
    return recipe, findings


@dataclass(slots=True)
class _Choice:
    """Decides where each tensor comes from.

    Parameters:
        filling: what is replaced by what.
        models: the whole and the part.
        findings: where remarks are recorded.
        unused: tensors of the part, by the reason.
    """

    filling: Filling
    models: Sequence[Model]
    findings: Findings
    unused: dict[str, list[str]] = field(default_factory=dict)

    @property
    def taken_from(self) -> int:
        """The part's index among the models; a whole that is its own part is opened once."""
        return len(self.models) - 1

    def tasks(self) -> Iterator[TensorTask]:
        """One for each tensor of the whole, in its order.

        Raises:
            IncompatibleModelsError: there is nothing to replace, or tensors have unequal shapes.
        """
        whole, part = self.models[0], self.models[-1]
        names = self.filling.names(part, whole)
        self._check_names(names, part, whole)
        views = {names[view.spec.name]: view for view in part.views.values()}
        own = {view.spec.name: view for view in whole.views.values()}
        place = f"{whole.ref}, {part.ref}"
        if not views.keys() & own.keys():
            what = "no tensor of the part has a name of the whole model"
            raise IncompatibleModelsError(what, place=place, hint="`--prefix` or `--map`")
        misshapen = [name for name in own if name in views and views[name].spec.shape != own[name].spec.shape]
        if misshapen and self.filling.shapes == "error":
            shown = (f"`{name}` is {views[name].spec.shape}, not {own[name].spec.shape}" for name in misshapen[:_SHOWN])
            hint = "`--on-shape-mismatch base`, which leaves the whole model's tensors, or `sub`"
            raise IncompatibleModelsError(f"shapes differ: {', '.join(shown)}", place=place, hint=hint)
        kept = set(misshapen) if self.filling.shapes == "base" else set()
        self._note(names, own.keys(), kept)
        for name, view in own.items():
            taken = name in views and name not in kept
            operand = Operand(self.taken_from if taken else 0, views[name] if taken else view)
            yield tensor_task(name, Passthrough(scale=(1.0,)), (operand,), False, seed=0, places=[place])

    def _check_names(self, names: Mapping[str, str], part: Model, whole: Model) -> None:
        """Each tensor of the whole takes one of the part; and what is said about names is about some."""
        known = {view.spec.name for view in whole.views.values()}
        sources: dict[str, list[str]] = {}
        for name, there in names.items():
            sources.setdefault(there, []).append(name)
        for there, several in sources.items():
            if len(several) > 1 and there in known:
                what = f"{len(several)} tensors of the part are to be `{there}` of the whole: {listed(several)}"
                raise IncompatibleModelsError(what, place=str(part.ref), hint="other names by `--map` or `--prefix`")
        for old in self.filling.renamed:
            if not any(name.startswith(old) for name in names):
                self.findings.warn(f"`--map {old}=` has no effect: no name of the part begins so")

    def leftovers(self) -> tuple[Leftover, ...]:
        """Tensors of the part that are not used."""
        return tuple(Leftover(self.taken_from, reason, tuple(names)) for reason, names in self.unused.items() if names)

    def _note(self, names: Mapping[str, str], known: Collection[str], kept: Collection[str]) -> None:
        self.unused = {
            _UNKNOWN: [name for name, there in names.items() if there not in known],
            _MISSHAPEN: [name for name, there in names.items() if there in kept],
        }
        for reason, unused in self.unused.items():
            if unused:
                self.findings.warn(f"{len(unused)} tensors of the part are not used: {reason}: {listed(unused)}")
        found = sum(map(len, self.unused.values()))
        self.findings.notice(f"{len(names) - found} of {len(known)} tensors are those of {self.models[-1].ref}")
