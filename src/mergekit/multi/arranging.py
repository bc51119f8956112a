"""What has to be done for a pipeline: which stages are up to date, written, or merged on the way into another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from mergekit.checkpoint.output import refuse_occupied
from mergekit.errors import OutputError
from mergekit.merging import JobOptions
from mergekit.multi.drafts import Planner, write_draft
from mergekit.multi.fingerprint import fingerprint, marked, up_to_date
from mergekit.multi.reading import Pipeline, Stage
from mergekit.multi.streaming import misfit
from mergekit.plan import Plan
from mergekit.recipe import nearest

State = Literal["up to date", "written", "on the way"]


@dataclass(frozen=True, slots=True)
class MultiOptions:
    """How a pipeline is carried out.

    Parameters:
        out: the folder of the merge without a name, or of the only one that is wanted; None if there is none.
        intermediate: the folder for merges with a name, each in a folder of that name; None for one beside `out`.
        only: names of the merges that are wanted, with what they need; all if there are none.
        lazy: leave merges alone that are up to date.
        keep: True to write every merge; False to remove at the end what was written for others; None to write only
            what cannot be merged on the way, and leave it there.
        job: options of every merge; `overwrite` is for outputs, since what a pipeline has put into the intermediate
            folder is always replaced.
    """

    out: Path | None = None
    intermediate: Path | None = None
    only: tuple[str, ...] = ()
    lazy: bool = True
    keep: bool | None = None
    job: JobOptions = field(default_factory=JobOptions)


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of a stage.

    Parameters:
        stage: the stage.
        state: "up to date", "written", or "on the way", which is merged while another stage reads it.
        folder: where it is, or would be.
        wanted: whether it is asked for, and not only needed by others.
        reason: why it is written though nobody asks for it, or None.
        plan: None if it is up to date.
    """

    stage: Stage
    state: State
    folder: Path
    wanted: bool
    reason: str | None = None
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Arrangement:
    """All that has to be done, in order.

    Parameters:
        steps: each after those it needs.
        planner: plans stages.
        drafts: folders of the stages that are not up to date, with everything but weights, by name.
    """

    steps: tuple[Step, ...]
    planner: Planner
    drafts: Mapping[str, Path]


@contextmanager
def arranged(pipeline: Pipeline, options: MultiOptions) -> Iterator[Arrangement]:
    """Plan all stages that have to be made; drafts of their folders are there within the context.

    Parameters:
        pipeline: the pipeline.
        options: how it is to be carried out.

    Raises:
        MergekitError: a stage cannot be planned, or its folder must not be written.
    """
    arranger = _Arranger.of(pipeline, options)
    with TemporaryDirectory(prefix="mergekit-") as folder:
        yield arranger.arrange(Path(folder))


@dataclass(frozen=True, slots=True)
class _Arranger:
    """Decides what becomes of every stage.

    Parameters:
        pipeline: the pipeline.
        options: how it is to be carried out.
        stages: those that are wanted or needed, in order.
        wanted: keys of those that are asked for.
    """

    pipeline: Pipeline
    options: MultiOptions
    stages: tuple[Stage, ...]
    wanted: frozenset[str]

    @classmethod
    def of(cls, pipeline: Pipeline, options: MultiOptions) -> _Arranger:
        """Find out what is asked for.

        Raises:
            OutputError: there is no merge of a name that is asked for, or a merge has no folder.
        """
        known = [key for key in pipeline.stages if key]
        for name in options.only:
            if name not in known:
                close = nearest(name, known)
                hint = f"`--only {close}`" if close else None
                raise OutputError(f"there is no merge called `{name}`", expected=", ".join(known), hint=hint)
        keys = options.only or (*pipeline.ends, *(stage.key for stage in pipeline.stages.values() if stage.out_path))
        stages = tuple(pipeline.with_needs(keys))
        wanted = frozenset(stage.key for stage in stages) if options.keep else frozenset(keys)
        return cls(pipeline, options, stages, wanted)

    def arrange(self, drafts: Path) -> Arrangement:
        """Decide, with drafts in a folder."""
        folders = {stage.key: self._folder(stage) for stage in self.stages}
        self._refuse_shared(folders)
        known: dict[str, str] = {}
        for stage in self.stages:
            known[stage.key] = fingerprint(stage, known, self.options.job)
        made = {key for key, folder in folders.items() if self.options.lazy and up_to_date(folder, known[key])}
        needed = self._needed(made)
        for stage in needed:
            if stage.key not in made:
                self._refuse_folder(stage, folders[stage.key])
        planner = Planner(self.pipeline, known, self.options.job)
        plans, places = self._planned(planner, needed, made, folders, drafts)
        steps = []
        for stage in needed:
            if stage.key in made:
                steps.append(Step(stage, "up to date", folders[stage.key], stage.key in self.wanted))
                continue
            reason = None if stage.key in self.wanted else self._obstacle(stage, needed, plans)
            state: State = "written" if stage.key in self.wanted or reason else "on the way"
            own = stage.key in self.wanted
            steps.append(Step(stage, state, folders[stage.key], own, reason, plans[stage.key]))
        return Arrangement(tuple(steps), planner, places)

    def _folder(self, stage: Stage) -> Path:
        options = self.options
        if stage.out_path is not None:
            return stage.out_path
        if options.out is not None and (stage.key == "" or options.only == (stage.key,)):
            return options.out
        if options.intermediate is not None and stage.key:
            return options.intermediate / stage.key
        if options.out is not None and stage.key:
            return options.out.with_name(options.out.name + ".stages") / stage.key
        what = f"nothing says where {stage.title} is written"
        hint = "`--intermediate-dir FOLDER`" if stage.key else "`--out-path FOLDER`"
        raise OutputError(what, place=str(stage.recipe.place("")) or None, hint=hint)

    def _refuse_shared(self, folders: Mapping[str, Path]) -> None:
        first: dict[Path, str] = {}
        for key, folder in folders.items():
            other = first.setdefault(folder.resolve(), key)
            if other != key:
                both = " and ".join(self.pipeline.stages[each].title for each in (other, key))
                raise OutputError(f"{both} have one folder", place=str(folder), expected="a folder for each")

    def _needed(self, made: set[str]) -> list[Stage]:
        """What is wanted, and what has to be there for that."""
        needed = set(self.wanted)
        for stage in reversed(self.stages):
            needed.update(stage.needs if stage.key in needed - made else ())
        return [stage for stage in self.stages if stage.key in needed]

    def _refuse_folder(self, stage: Stage, folder: Path) -> None:
        overwrite = self.options.job.overwrite or (stage.key != "" and stage.out_path is None and marked(folder))
        refuse_occupied(folder, overwrite)

    def _planned(
        self, planner: Planner, needed: list[Stage], made: set[str], folders: Mapping[str, Path], drafts: Path
    ) -> tuple[dict[str, Plan], dict[str, Path]]:
        """The plans of what is not up to date, and where everything is for these plans."""
        plans: dict[str, Plan] = {}
        places = {key: folders[key].absolute() for key in made}
        for stage in needed:
            if stage.key not in made:
                plans[stage.key] = planner.plan(stage, {name: places[name] for name in stage.needs})
                places[stage.key] = drafts / (stage.key or "-")
                write_draft(plans[stage.key], places[stage.key])
        return plans, places

    def _obstacle(self, stage: Stage, needed: list[Stage], plans: Mapping[str, Plan]) -> str | None:
        """Why a stage cannot be merged while the one that needs it reads it."""
        users = [user.key for user in needed if stage.key in user.needs and user.key in plans]
        if len(users) > 1:
            return f"{len(users)} merges need it"
        if self.options.job.device not in (None, "kernels"):
            return "another device than the CPU computes"
        plan = plans[users[0]]
        indices = [index for index, model in enumerate(plan.models) if model.ref.model.path == stage.key]
        if len(indices) != 1:
            return "it is needed for its tokenizer" if not indices else "it is merged with an adapter and without"
        return misfit(plan, indices[0], plans[stage.key])
