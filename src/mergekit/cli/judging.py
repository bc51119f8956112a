"""Options and steps that the search and the sweep share: how candidates are merged and judged."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit.cli.merge import DANGEROUS
from mergekit.cli.options import accepted, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mergekit.cli.output import Output
    from mergekit.evolution.candidate import Loading
    from mergekit.evolution.evaluation import RecipeEvaluator
    from mergekit.evolution.harness import Tasks
    from mergekit.evolution.objectives import Objective
    from mergekit.evolution.workers import Workers

JUDGED = "How candidates are judged"

in_workers = accepted(
    option(
        JUDGED,
        "--workers",
        metavar="N",
        type=click.IntRange(min=1),
        help="Processes that judge one candidate each; they share the cores. 1 if not given; with --ray one for each "
        "accelerator of the cluster, or for each machine.",
    ),
    option(
        JUDGED,
        "--ray",
        metavar="[ADDRESS]",
        bare=("auto", r"auto|local|[^/\s]+:\d+"),
        help="Judge on the machines of a Ray cluster: the one that runs here, or at HOST:PORT; local for a new one of "
        "this machine alone. Models, texts and tasks must be at the same paths on all of them.",
    ),
)
judged = accepted(
    option(
        JUDGED,
        "--task-search-path",
        "--include-path",
        "folders",
        metavar="FOLDER",
        multiple=True,
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="A folder with tasks of lm-eval of your own; may be given several times.",
    ),
    option(
        JUDGED,
        "--batch-size",
        "batch",
        metavar="N",
        type=click.IntRange(min=1),
        default=8,
        help="Examples, or windows of text, that a model looks at together; 8 if not given.",
    ),
    option(
        JUDGED,
        "--trust-remote-code/--no-trust-remote-code",
        help="Let transformers run code that comes with the models.",
    ),
    option(
        DANGEROUS,
        "--allow-code",
        is_flag=True,
        help="Run the functions and commands that objectives name, and a merge method in a Python file.",
    ),
    option(
        DANGEROUS,
        "--i-understand-the-depths-of-the-evils-i-am-unleashing",
        "unleashed",
        is_flag=True,
        help="Score by public benchmarks; what they say about the model is worth nothing afterwards.",
    ),
)


def loading_of(flags: dict[str, Any], strict: bool, bits: int | None = None) -> Loading:
    """How candidates are merged and put to work; takes its options out of the flags."""
    from mergekit.api.options import MergeOptions
    from mergekit.evolution.candidate import Loading

    threads = flags.pop("num_threads")
    merge = MergeOptions(
        strict=strict,
        allow_code=flags.pop("allow_code"),
        random_seed=flags.pop("random_seed"),
        device="cuda" if flags.pop("merge_cuda", False) else None,
        num_threads=threads,
        out_shard_size=0,
        write_model_card=False,
    )
    trusted = flags.pop("trust_remote_code")
    return Loading(merge, None, flags.pop("batch"), trusted, bits, threads)


def ready_workers(evaluator: RecipeEvaluator, count: int | None, cluster: str | None, output: Output) -> Workers:
    """Workers for an evaluator, once it is known that it can do its work.

    Parameters:
        evaluator: every worker has a copy.
        count: of the workers; None for the usual number.
        cluster: address of a Ray cluster, or None for this machine.
        output: is told if there are fewer.

    Raises:
        UnsupportedError: a library is not installed, a text is not there, or a task is unknown.
        MethodError: a function is not there.
        DeviceError: there is no such cluster, or no device to merge on.
    """
    from mergekit.evolution.workers import Alone, Processes

    check_ready(evaluator.objectives, evaluator.loading.tasks)
    if cluster:
        from mergekit.evolution.cluster import Machines

        machines = Machines(evaluator, cluster, count, evaluator.loading.threads)
        if machines.count < (count or 0):
            output.note([f"{machines.count} workers instead of {count}: the cluster has no cores for more"])
        return machines
    if evaluator.loading.merge.device:
        from mergekit.api.options import device
        from mergekit.engine import open_device

        open_device(device(evaluator.loading.merge))  # or every candidate would fail for the lack of it
    if (count or 1) == 1:
        return Alone(evaluator.prepare(evaluator.loading.threads, None))
    return Processes(evaluator, count or 1, _devices())


def check_ready(objectives: Sequence[Objective], tasks: Tasks) -> None:
    """See to it that objectives can be measured.

    Raises:
        UnsupportedError: a library is not installed, a text is not there, or a task is unknown.
        MethodError: a function is not there.
    """
    from mergekit.evolution.harness import missing, refuse_unknown
    from mergekit.evolution.objectives import CommandObjective, TaskObjective

    for objective in objectives:
        objective.check()
    if any(not isinstance(objective, CommandObjective) for objective in objectives):
        for package in ("torch", "transformers"):
            if find_spec(package) is None:
                raise missing("objectives", package)
    names = [objective.name for objective in objectives if isinstance(objective, TaskObjective)]
    if names:
        refuse_unknown(names, tasks)


def _devices() -> tuple[str, ...]:
    if find_spec("torch") is None:
        return ()
    import torch

    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
