"""Carries out what was arranged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mergekit.merging import JobOptions, Progress, carry_out
from mergekit.multi.arranging import Arrangement, MultiOptions, Step, arranged
from mergekit.multi.fingerprint import marked
from mergekit.multi.reading import read_pipeline
from mergekit.multi.streaming import Upstream, streamed
from mergekit.plan import Plan, PlanOptions

Report = Mapping[str, object]
Telling = Callable[[Step, Callable[[Progress | None], Report]], Report]
"""Does a job that tells its progress, and returns its report."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a stage.

    Parameters:
        step: the stage and where it is.
        report: of its merge, if it was written.
        removed: whether it was removed again.
    """

    step: Step
    report: Report | None = None
    removed: bool = False


def _silently(step: Step, job: Callable[[Progress | None], Report]) -> Report:
    del step
    return job(None)


def run_pipeline(
    text: str, *, file: str | None = None, options: MultiOptions, telling: Telling = _silently
) -> tuple[Done, ...]:
    """Carry out the merges of a pipeline.

    All of them are planned before the first weight is read. A merge that only one other needs is not written, where its
    method allows it: its tensors are made while the other reads them, and the bytes that come out are the same. Every
    folder appears complete, or not at all.

    Parameters:
        text: YAML, documents behind lines of ``---``.
        file: its name, for messages.
        options: see :class:`MultiOptions`.
        telling: is given every merge that is written, to carry it out.

    Raises:
        MergekitError: see the tree in :mod:`mergekit.errors`.
    """
    with arranged(read_pipeline(text, file=file), options) as arrangement:
        done = tuple(_Runner(arrangement, options).run(telling))
    return tuple(_cleared(each) if options.keep is False else each for each in done)


def _cleared(done: Done) -> Done:
    """What was written for others alone is removed, unless the pipeline says where it is to be."""
    if done.report is None or done.step.wanted or done.step.stage.out_path is not None:
        return done
    shutil.rmtree(done.step.folder)
    if not any(done.step.folder.parent.iterdir()):
        done.step.folder.parent.rmdir()
    return replace(done, removed=True)


@dataclass(frozen=True, slots=True)
class _Runner:
    """Merges stage after stage."""

    arrangement: Arrangement
    options: MultiOptions

    def run(self, telling: Telling) -> list[Done]:
        done = []
        places = dict(self.arrangement.drafts)
        for step in self.arrangement.steps:
            if step.state != "written":
                done.append(Done(step))
                continue
            plan = final_plan(self.arrangement, step, places, self.options.job.plan)
            job = replace(self.options.job, overwrite=self.options.job.overwrite or marked(step.folder))
            done.append(Done(step, telling(step, partial(_carried_out, plan, step, job))))
            places[step.stage.key] = step.folder.absolute()
        return done


def _carried_out(plan: Plan, step: Step, job: JobOptions, progress: Progress | None) -> Report:
    return carry_out(lambda: plan, step.folder, job, progress)


def final_plan(arrangement: Arrangement, step: Step, places: Mapping[str, Path], options: PlanOptions) -> Plan:
    """The plan by which a stage is merged, when everything is written that it needs and that is to be written.

    Parameters:
        arrangement: what has to be done.
        step: the stage.
        places: where the stages are that it needs, or their drafts.
        options: of planning.
    """
    needed = [each for each in arrangement.steps if each.stage.key in step.stage.needs]
    plan = arrangement.planner.plan(step.stage, {each.stage.key: places[each.stage.key] for each in needed})
    before = {
        index: Upstream(each.stage.key, each.folder, final_plan(arrangement, each, places, options))
        for index, model in enumerate(plan.models)
        for each in needed
        if each.state == "on the way" and model.ref.model.path == each.stage.key
    }
    return streamed(plan, before, options) if before else plan
