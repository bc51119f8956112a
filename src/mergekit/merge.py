"""``run_merge``, as notebooks call it.

:func:`mergekit.merge_models` does the same from a path or a mapping, and returns the report.
"""

from __future__ import annotations

import os
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from mergekit.api.notices import warn
from mergekit.api.options import MergeOptions, carrying_out
from mergekit.api.recipes import carry_out
from mergekit.config import MergeConfiguration
from mergekit.errors import OutputError
from mergekit.plan import Plan, plan_merge

__all__ = ["MergeOptions", "run_merge"]

_ALWAYS = ("README.md", "merge_report.json", "model.safetensors.index.json")


def run_merge(
    merge_config: MergeConfiguration,
    out_path: str | os.PathLike[str],
    options: MergeOptions | None = None,
    config_source: str | None = None,
) -> None:
    """Merge into a model folder.

    A cell may be run again: an earlier merge in the folder is replaced without being asked for, as long as the folder
    holds nothing that this merge would not write. Warnings about the recipe are Python warnings.

    Parameters:
        merge_config: the recipe.
        out_path: the folder to be made.
        options: see :class:`MergeOptions`.
        config_source: the text that `merge_config` was read from: it is kept in the folder, and messages point into
            it, as long as it says the same.

    Raises:
        OutputError: the folder holds something else.
        MergekitError: see the tree in :mod:`mergekit.errors`.
    """
    job, out = carrying_out(options or MergeOptions()), Path(out_path)
    recipe = _with_source(merge_config, config_source)
    if not job.overwrite and (out / "mergekit_config.yml").is_file():
        _refuse_foreign(out, plan_merge(recipe.to_yaml(), file=recipe.recipe.file, options=job.plan))
        job = replace(job, overwrite=True)
    carry_out(recipe, out, job)


def _with_source(config: MergeConfiguration, source: str | None) -> MergeConfiguration:
    """The recipe with its own text, if that says the same."""
    if source is None:
        return config
    read = MergeConfiguration.from_yaml(source, config.recipe.file)
    if read.model_dump() == config.model_dump():
        return read
    warn("`config_source` is not used: it says something else than the configuration")
    return config


def _refuse_foreign(out: Path, plan: Plan) -> None:
    """Refuse a folder with files that a merge would not write."""
    written = {*plan.copies, *plan.texts, *_ALWAYS}
    for file in sorted(out.rglob("*")):
        name = file.relative_to(out).as_posix()
        if not (file.is_dir() or name in written or fnmatch(name, "model*.safetensors")):
            raise OutputError(
                f"the output folder holds `{name}`, which this merge does not write",
                place=str(out),
                hint="another folder, or `MergeOptions(overwrite=True)`, which removes it",
            )
