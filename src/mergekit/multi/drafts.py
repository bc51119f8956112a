"""Plans of stages, made before any of them is merged: with folders that have everything but weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mergekit.checkpoint import plan_shards
from mergekit.merging import JobOptions
from mergekit.multi.fingerprint import MARK, mark
from mergekit.multi.reading import Pipeline, Stage, stage_language
from mergekit.plan import Plan, plan_merge
from mergekit.plan.fingerprint import provenance


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans the stages of a pipeline.

    Parameters:
        pipeline: the pipeline.
        fingerprints: of its stages, by key.
        options: of all merges.
    """

    pipeline: Pipeline
    fingerprints: Mapping[str, str]
    options: JobOptions

    def plan(self, stage: Stage, folders: Mapping[str, Path]) -> Plan:
        """The plan of a stage.

        Parameters:
            stage: the stage.
            folders: where the stages are that it needs, by name: made, or drafted.

        Raises:
            MergekitError: see :func:`~mergekit.plan.plan_merge`.
        """
        given = self.options.plan
        known = {**given.hub.known, **folders}
        options = replace(given, hub=replace(given.hub, known=known), language=stage_language())
        return self._recorded(plan_merge(stage.document.in_place, file=self.pipeline.file, options=options), stage)

    def _recorded(self, plan: Plan, stage: Stage) -> Plan:
        """The plan, which leaves behind the documents of all stages that lead to it."""
        text = self.pipeline.record(stage)
        texts = {**plan.texts, "mergekit_config.yml": text, MARK: mark(self.fingerprints[stage.key])}
        specs = [task.out for task in plan.tasks]
        return replace(
            plan,
            recipe=replace(plan.recipe, text=text),
            texts=texts,
            shards=plan_shards(specs, self.options.plan.shard_bytes, provenance(text)),
            options={**plan.options, "multi": {"name": stage.key or None}},
        )


def write_draft(plan: Plan, folder: Path) -> None:
    """Write what a merge will write, with a hole in place of the weights: other merges can be planned with it.

    Parameters:
        plan: of the merge.
        folder: to be made.
    """
    folder.mkdir()
    for name, source in plan.copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    for name, text in plan.texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    for shard in plan_shards([task.out for task in plan.tasks], 0, {}):
        (folder / shard.file).write_bytes(shard.head)
        os.truncate(folder / shard.file, shard.nbytes)
