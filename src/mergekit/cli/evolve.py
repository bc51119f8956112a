"""``mergekit evolve`` and ``mergekit-evolve``: search for the best recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from mergekit import __version__
from mergekit.cli.judging import JUDGED, in_workers, judged, loading_of, ready_workers
from mergekit.cli.merge import config_file, heed_stop, in_json, on_threads, quietly, read_config, strictly, verbosely
from mergekit.cli.options import Command, accepted, ignored, ignored_flags, option
from mergekit.cli.output import Output, usage_failure
from mergekit.errors import UnsupportedError

if TYPE_CHECKING:
    from mergekit.evolution.evaluation import Judged, RecipeEvaluator
    from mergekit.evolution.genome import Genome
    from mergekit.evolution.language import Experiment
    from mergekit.evolution.options import SearchOptions
    from mergekit.evolution.search import Found
    from mergekit.evolution.tracking import Tracker

SEARCHED = "How is searched"
KEPT = "What is kept"
BEST = "best_config.yaml"

_search = accepted(
    option(
        SEARCHED,
        "--max-fevals",
        "--n-iterations",
        "evaluations",
        metavar="N",
        type=click.IntRange(min=1),
        default=100,
        help="Candidates, at most; 100 if not given. More of them later continue the search.",
    ),
    option(
        SEARCHED,
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        help="Begin no further candidate after so long. The same command continues the search.",
    ),
    option(
        SEARCHED,
        "--sampler",
        type=click.Choice(["cmaes", "tpe", "nsga2", "random"]),
        help="CMA-ES, tree-structured Parzen estimator, NSGA-II, or at random. CMA-ES if not given; NSGA-II with "
        "`pareto: true`, TPE for a single number.",
    ),
    option(SEARCHED, "--seed", metavar="N", type=int, default=0, help="Seed of the search; 0 if not given."),
    option(SEARCHED, "--random-seed", metavar="N", type=int, default=0, help="Seed of random methods; 0 if not given."),
    option(
        SEARCHED,
        "--sigma0",
        type=click.FloatRange(min=0, min_open=True),
        default=1 / 6,
        help="First step of CMA-ES as a share of the bounds; 1/6 if not given.",
    ),
    option(
        SEARCHED,
        "--force-population-size",
        "population",
        metavar="N",
        type=click.IntRange(min=2),
        help="Candidates of a generation; 4 + 3 ln(numbers searched) if not given.",
    ),
    option(
        SEARCHED,
        "--halving",
        is_flag=True,
        help="Judge by a ninth of all text and examples first, the better third by a third, its better third by all.",
    ),
)
_kept = accepted(
    option(
        KEPT,
        "--storage-path",
        "storage",
        metavar="FOLDER",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="State and results of the search. What was killed continues from it.",
    ),
    option(
        KEPT,
        "--save-final-model/--no-save-final-model",
        "final",
        default=True,
        help="Merge the best recipe into FOLDER/final_model (which is the default).",
    ),
    option(
        KEPT,
        "--plots",
        type=click.Choice(["png", "svg", "pdf", "none"]),
        default="png",
        help="Kind of the plots; png if not given. Without matplotlib there are none.",
    ),
    option(KEPT, "--wandb/--no-wandb", help="Log to Weights & Biases."),
    option(KEPT, "--wandb-project", metavar="NAME", default="mergekit-evolve", help="Its project."),
    option(KEPT, "--wandb-entity", metavar="NAME", help="Its user or team."),
)
_as_elsewhere = accepted(
    ignored(
        "-s", "--strategy", type=click.Choice(["pool", "buffered", "serial"]), why="free workers take what is next"
    ),
    ignored("--in-memory/--no-in-memory", why="candidates are always merged in memory"),
    ignored("--reshard/--no-reshard", why="models are read as they are stored"),
    ignored("--allow-crimes/--no-allow-crimes", why="the tensors decide whether models go together"),
)


@click.command(cls=Command, context_settings={"max_content_width": 100})
@config_file
@verbosely
@quietly
@in_json
@strictly
@_search
@option(
    JUDGED,
    "--task",
    "named",
    metavar="NAME",
    multiple=True,
    help="Score by this task instead of the configuration's tasks, with the metric and weight that it has there; may "
    "be given several times.",
)
@in_workers
@option(JUDGED, "--num-gpus", metavar="N", type=click.IntRange(min=1), help="The same as --workers.")
@option(JUDGED, "--merge-cuda/--no-merge-cuda", help="Merge on an accelerator; compiled kernels on the CPU if not.")
@option(JUDGED, "--load-in-8bit", "bits8", is_flag=True, help="Judge models quantised by bitsandbytes.")
@option(JUDGED, "--load-in-4bit", "bits4", is_flag=True, help="The same with 4 bits (nf4).")
@option(JUDGED, "--vllm/--no-vllm", help="Refused: models are judged by transformers.")
@judged
@on_threads
@_kept
@_as_elsewhere
@click.version_option(__version__, prog_name="mergekit", message="%(prog)s %(version)s")
@click.help_option("-h", "--help")
def evolve(config_file: str, verbose: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Search for the parameters that make the best merge, as the configuration CONFIG_FILE says.

    The same command again continues a search that was killed, or had its budget used up, from FOLDER. Needs the extra
    of this name: pip install "mergekit[evolve]".
    """
    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        output.note(ignored_flags())
        try:
            _evolve(config_file, flags, output)
        except click.UsageError as error:
            output.fail(usage_failure(error))


def _evolve(config_file: str, flags: dict[str, Any], output: Output) -> None:
    from mergekit.evolution.evaluation import RecipeEvaluator
    from mergekit.evolution.plots import require_matplotlib
    from mergekit.evolution.preparing import prepare
    from mergekit.evolution.search import claimed

    heed_stop()
    text, name = read_config(config_file)
    loading = loading_of(flags, flags.pop("strict"), _bits(flags))
    experiment, genome, findings = prepare(text, name, loading.merge, flags.pop("named"), flags.pop("unleashed"))
    output.warn(findings.warnings)
    output.note(findings.notices)
    options = _options(flags, experiment)
    tasks = replace(experiment.tasks, folders=flags.pop("folders"), seed=options.seed)
    objectives = tuple(objective for objective, _ in experiment.objectives)
    evaluator = RecipeEvaluator(objectives, replace(loading, tasks=tasks))
    with suppress(UnsupportedError):
        require_matplotlib()
        flags["drawn"] = flags["plots"] != "none"
    with claimed(flags["storage"]):
        found = _searched(experiment, genome, evaluator, options, flags, output)
        _finish(found, evaluator, flags, output)


def _bits(flags: dict[str, Any]) -> int | None:
    """Bits of quantised models."""
    bits8, bits4 = flags.pop("bits8"), flags.pop("bits4")
    if flags.pop("vllm"):
        hint = "the same command without `--vllm`"
        raise UnsupportedError("vLLM is not used here: models are judged by transformers", hint=hint)
    if bits8 and bits4:
        raise click.UsageError("`--load-in-8bit` and `--load-in-4bit` are given together: one of them")
    if (bits8 or bits4) and find_spec("bitsandbytes") is None:
        raise UnsupportedError("quantised models need bitsandbytes", hint="`pip install bitsandbytes`")
    return 8 if bits8 else 4 if bits4 else None


def _options(flags: dict[str, Any], experiment: Experiment) -> SearchOptions:
    from mergekit.evolution.options import SearchOptions

    names = ("evaluations", "timeout", "seed", "sampler", "population", "sigma0", "halving")
    asked = flags.pop("num_gpus")
    if asked and flags["workers"] not in (None, asked):
        raise click.UsageError("`--workers` and `--num-gpus` differ, and mean the same: one of them")
    flags["workers"] = flags["workers"] or asked
    options = SearchOptions(
        **{name: flags.pop(name) for name in names}, scattered=experiment.scattered, workers=flags["workers"] or 1
    )
    objectives = [objective for objective, _ in experiment.objectives]
    if experiment.pareto and len(objectives) < 2:
        raise UnsupportedError("`pareto: true` has one objective", expected="two or more to keep apart")
    if experiment.pareto and options.sampler == "cmaes":
        raise click.UsageError("CMA-ES searches for one objective: `--sampler nsga2`, or no `pareto: true`")
    whole = [objective.name for objective in objectives if not objective.divisible]
    if options.halving and (experiment.pareto or whole):
        reason = f"`{whole[0]}` can only be measured as a whole" if whole else "`pareto: true` keeps objectives apart"
        raise UnsupportedError(f"`--halving` does not go with this: {reason}")
    return options


def _searched(
    experiment: Experiment,
    genome: Genome,
    evaluator: RecipeEvaluator,
    options: SearchOptions,
    flags: dict[str, Any],
    output: Output,
) -> Found:
    from mergekit.evolution.search import search
    from mergekit.evolution.tracking import Tracker

    tracker = None
    if flags["wandb"]:
        tracker = Tracker(flags["wandb_project"], flags["wandb_entity"], {"configuration": experiment.text})
    teller = _Teller(flags["storage"], options.evaluations, output, tracker)
    with _resumable(), ready_workers(evaluator, flags["workers"], flags["ray"], output) as workers:
        found = search(
            genome,
            evaluator.objectives,
            workers,
            flags["storage"],
            replace(options, workers=workers.count),
            observer=teller,
            pareto=experiment.pareto,
            settings=_deciding(evaluator),
        )
    if tracker:
        tracker.finish(flags["storage"] / BEST)
    return found


def _deciding(evaluator: RecipeEvaluator) -> dict[str, str]:
    """What decides scores beside the configuration of the search itself."""
    from mergekit.evolution.objectives import TaskObjective

    loading = evaluator.loading
    known = {
        "`--random-seed`": str(loading.merge.random_seed),
        "quantisation": f"{loading.bits} bits" if loading.bits else "none",
    }
    tasks = loading.tasks
    if any(isinstance(objective, TaskObjective) for objective in evaluator.objectives):
        settings = {"limit": tasks.limit, "num_fewshot": tasks.shots, "shuffle": tasks.shuffle}
        settings |= {"apply_chat_template": tasks.chat, "fewshot_as_multiturn": tasks.multiturn}
        known |= {f"`{name}`": str(value) for name, value in settings.items()}
    return known


@contextmanager
def _resumable() -> Iterator[None]:
    """Say at Ctrl-C what is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues the search") from None


@final
@dataclass(slots=True)
class _Teller:
    """Keeps records and says how the search goes."""

    storage: Path
    budget: int
    output: Output
    tracker: Tracker | None
    best: float = -math.inf

    def judged(self, number: int, judged: Judged) -> None:
        """Say so if a candidate failed, or is the best so far."""
        if judged.failure:
            self.output.note([f"trial {number} failed: {judged.failure}"])
        elif judged.score > self.best:
            self.best = judged.score
            self.output.note([f"trial {number} of {self.budget}: score {judged.score:.6g}"])

    def generation(self, found: Found) -> None:
        """Write what is known."""
        from mergekit.evolution.record import write_records

        write_records(found, self.storage)
        self.best = max((entry.judged.score for entry in found.entries if entry.counts), default=self.best)
        if self.tracker:
            self.tracker.generation(found)


def _finish(found: Found, evaluator: RecipeEvaluator, flags: dict[str, Any], output: Output) -> None:
    """Draw, merge the best recipe, and say what was found."""
    from mergekit.evolution.record import history, measured

    storage, best = flags["storage"], found.best
    files = [storage / BEST]
    if flags.get("drawn"):
        from mergekit.evolution.plots import draw_search

        files += draw_search(found, storage, f".{flags['plots']}")
    if flags["final"]:
        from mergekit.api.options import carrying_out
        from mergekit.merging import merge_recipe

        merge = replace(evaluator.loading.merge, overwrite=True, write_model_card=True, out_shard_size=5_000_000_000)
        recipe = (storage / BEST).read_text(encoding="utf-8")  # the model tells which text it was made from
        merge_recipe(recipe, storage / "final_model", file=str(storage / BEST), options=carrying_out(merge))
        files.append(storage / "final_model")
    first = found.entries[0]
    rows = [
        (
            "trials",
            f"{len(found.entries)}, of them failed {sum(entry.judged.failure is not None for entry in found.entries)}",
        ),
        ("first", f"score {first.judged.score:.6g}"),
        ("best", f"score {best.judged.score:.6g}, trial {best.number}"),
        *((name, f"{value:.6g}") for name, value in measured(found, best.judged).items()),
        *(
            ("searched", f"{gene.name} {gene.value(value)}")
            for gene, value in zip(found.genome.genes, best.values, strict=True)
        ),
        *(("written", click.format_filename(file)) for file in files),
    ]
    output.finish(rows, {"storage": str(storage), "recipe": found.recipe(best), **history(found)})
