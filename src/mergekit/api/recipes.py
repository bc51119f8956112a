"""Merges that recipes describe: into a folder, as a plan, or tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, final

from mergekit import merging, plan
from mergekit.api.arrays import library_named
from mergekit.api.memory import merger
from mergekit.api.notices import warn
from mergekit.api.options import MergeOptions, carrying_out, device, first_device, planning
from mergekit.config import UNNAMED, MergeConfiguration, rendered
from mergekit.errors import Problem, RecipeError
from mergekit.merging import Progress, Silent, inputs_of
from mergekit.plan import Plan
from mergekit.recipe import decoded
from mergekit.recipe.kinds import is_moe

RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | MergeConfiguration
"""The path of a recipe, its YAML text, what a YAML library made of that, or a recipe that has been read."""


def merge_models(
    recipe: RecipeLike,
    out: str | os.PathLike[str],
    *,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> Mapping[str, Any]:
    """Merge what a recipe describes into a new model folder.

    The folder appears complete, or not at all. Warnings about the recipe are Python warnings, issued before a weight is
    read, and are in the report as well.

    Parameters:
        recipe: a path, YAML text, a mapping or a :class:`~mergekit.config.MergeConfiguration`. Text of several lines,
            or with a colon and a space, is YAML; any other text is a path.
        out: the folder to be made.
        options: see :class:`MergeOptions`.
        progress: is told what happens: `planned` once, `advance` with bytes, from any thread.

    Returns:
        The report, which is also written to ``merge_report.json``.

    Raises:
        RecipeError: the recipe has mistakes, or there is none; all of them are in the error.
        OutputError: the folder is not empty and `options.overwrite` is not set, or it cannot be written.
        MergekitError: other reasons, see the tree in :mod:`mergekit.errors`.

    Example:
        >>> merge_models({"merge_method": "linear", "models": [{"model": "/no/where"}]}, "merged")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        mergekit.errors.RecipeError: /no/where: there is no such folder
          at models[0].model (<recipe>:3)
          ...
    """
    return carry_out(recipe, Path(out), carrying_out(options or MergeOptions()), progress)


def carry_out(
    recipe: RecipeLike, out: Path, options: merging.JobOptions, progress: Progress | None = None
) -> Mapping[str, Any]:
    """Merge into a folder, with Python warnings about the recipe."""
    (text, file), warner = _read(recipe), _Warner(progress or Silent())
    if is_moe(text):
        from mergekit.moe import GateOptions, MoeOptions, build_moe

        gates = MoeOptions(gates=GateOptions(first_device(options.device)))
        return build_moe(text, out, file=file, options=options, moe=gates, progress=warner)[0]
    return merging.merge_recipe(text, out, file=file, options=options, progress=warner)


def plan_merge(recipe: RecipeLike, *, options: MergeOptions | None = None) -> Plan:
    """Plan the merge that a recipe describes: every mistake is found, and no weight is read.

    Parameters:
        recipe: see :func:`merge_models`.
        options: see :class:`MergeOptions`.

    Returns:
        The plan: `tasks` (one for each output tensor), `read_bytes`, `write_bytes`, `memory.peak`, `findings` with
        warnings and notices, and more.

    Raises:
        RecipeError: the recipe has mistakes, or there is none; all of them are in the error.
        MergekitError: other reasons, see the tree in :mod:`mergekit.errors`.
    """
    text, file = _read(recipe)
    return plan.plan_merge(text, file=file, options=planning(options or MergeOptions()))


def iter_merged(
    recipe: RecipeLike, *, options: MergeOptions | None = None, framework: Literal["numpy", "torch"] = "numpy"
) -> Iterator[tuple[str, Any]]:
    """Merge what a recipe describes tensor by tensor, without writing anything.

    One tensor is in memory at a time, as long as the caller lets go of those before. The entries are those that
    :func:`merge_models` would write, and come in the order of its files.

    Parameters:
        recipe: see :func:`merge_models`.
        options: see :class:`MergeOptions`; those about the output folder have no effect.
        framework: "torch" for tensors with the dtype of the output. "numpy" for arrays: NumPy has no bfloat16, so
            bfloat16 comes as float32, which holds the same values; float8 comes as uint8, bits as they are.

    Yields:
        Name and tensor.

    Raises:
        RecipeError: the recipe has mistakes, or there is none; raised at once, before the first tensor is asked for.
        NonFiniteError: a tensor holds NaN or infinity.
        MergekitError: other reasons, see the tree in :mod:`mergekit.errors`.
        ValueError: there is no such framework.
    """
    from mergekit.engine import open_device

    options, own = options or MergeOptions(), library_named(framework)
    planned = plan_merge(recipe, options=options)
    compute = open_device(device(options), options.read_to_gpu or options.gpu_rich)
    _Warner(Silent()).planned(planned)

    def merged() -> Iterator[tuple[str, Any]]:
        with inputs_of(planned) as files, merger(planned.memory, files, compute) as merge:
            for task in planned.tasks:
                yield task.out.name, own.array(merge(task), task.out.dtype, task.out.shape)

    return merged()


@final
class _Warner:
    """Issues what was found about a recipe as Python warnings, and passes everything on."""

    def __init__(self, progress: Progress) -> None:
        self.advance = progress.advance
        self._next = progress

    def planned(self, plan: Plan) -> None:
        """Warn before anything is done."""
        for problem in plan.findings.warnings:
            warn(str(problem))
        self._next.planned(plan)


def _read(recipe: RecipeLike) -> tuple[str, str | None]:
    """The text of a recipe, and what messages call it."""
    if isinstance(recipe, MergeConfiguration):
        return recipe.to_yaml(), recipe.recipe.file
    if isinstance(recipe, Mapping):
        return rendered(recipe), UNNAMED
    if isinstance(recipe, str) and _is_yaml(recipe):
        return recipe, UNNAMED
    if isinstance(recipe, str | os.PathLike):
        return _text(Path(recipe)), os.fspath(recipe)
    raise TypeError(f"a recipe is a path, YAML text, a mapping or a MergeConfiguration, not {type(recipe).__name__}")


def _is_yaml(text: str) -> bool:
    with suppress(OSError, ValueError):  # too long for a path, or with a null character
        if Path(text).is_file():
            return False
    return "\n" in text or ": " in text


def _text(file: Path) -> str:
    try:
        return decoded(file.read_bytes(), str(file))
    except OSError as error:
        raise RecipeError([Problem(f"the recipe cannot be read: {error.strerror}", str(file))]) from error
