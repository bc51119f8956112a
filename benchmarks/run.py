"""Measure merges of 0.5 B models: wall clock and peak memory of whole processes, next to the floor and to a peer.

See README.md in this folder for what the columns mean. Only the standard library is used: the peak memory that the
kernel reports for a child is never below what this process occupied when it started the child.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
MB = 1e6


def weighted(**weights: float) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": {"weight": weight}} for name, weight in weights.items()]


def trimmed(density: float, **weights: float) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": {"weight": weight, "density": density}} for name, weight in weights.items()]


def plain(*names: str) -> list[dict[str, Any]]:
    return [{"model": name} for name in names]


THREE = {"a": 0.5, "b": 0.3, "c": 0.2}
OF_BASE: dict[str, Any] = {"base_model": "base"}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"models": weighted(base=0.1, a=0.2, b=0.3, c=0.4)},
    "slerp": OF_BASE | {"models": plain("base", "a"), "parameters": {"t": 0.4}},
    "nuslerp": OF_BASE | {"models": weighted(a=0.6, b=0.4)},
    "multislerp": OF_BASE | {"models": weighted(**THREE)},
    "karcher": {"models": plain("base", "a", "b", "c"), "parameters": {"max_iter": 10, "tol": 1e-5}},
    "model_stock": OF_BASE | {"models": plain("a", "b", "c")},
    "task_arithmetic": OF_BASE | {"models": weighted(**THREE)},
    "ties": OF_BASE | {"models": trimmed(0.5, **THREE)},
    "dare_linear": OF_BASE | {"models": trimmed(0.5, **THREE)},
    "dare_ties": OF_BASE | {"models": trimmed(0.5, **THREE)},
    "breadcrumbs": OF_BASE | {"models": trimmed(0.6, **THREE), "parameters": {"gamma": 0.05}},
    "breadcrumbs_ties": OF_BASE | {"models": trimmed(0.6, **THREE), "parameters": {"gamma": 0.05}},
    "della": OF_BASE | {"models": trimmed(0.5, **THREE), "parameters": {"epsilon": 0.1}},
    "della_linear": OF_BASE | {"models": trimmed(0.5, **THREE), "parameters": {"epsilon": 0.1}},
    "sce": OF_BASE | {"models": plain("a", "b", "c"), "parameters": {"select_topk": 0.5}},
    "ram": OF_BASE | {"models": plain("a", "b", "c")},
    "ramplus_tl": OF_BASE | {"models": plain("a", "b", "c")},
    "nearswap": OF_BASE | {"models": plain("a"), "parameters": {"t": 0.001}},
    "arcee_fusion": OF_BASE | {"models": plain("a")},
    "passthrough": {"models": plain("a")},
}
"""Recipes by the name of their method; `base`, `a`, `b` and `c` stand for the folders of the models."""


class BenchmarkError(Exception):
    """A process that was to be measured did not do what it was started for."""


@dataclass(frozen=True, slots=True)
class Run:
    """One process from start to end: seconds of wall clock and of all cores, peak resident memory in MB."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that is measured: the command that merges, what it writes, how often it runs."""

    name: str
    command: tuple[str, ...]
    output: Path
    output_bytes: int
    environment: dict[str, str]
    runs: int


@dataclass(slots=True)
class Result:
    """The counted runs of one method by contender, in the order in which they ran, and what failed."""

    method: str
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def seconds(self, name: str) -> list[float]:
        return [run.seconds for run in self.runs.get(name, ())]

    def peak_mb(self, name: str) -> float | None:
        return max((run.peak_mb for run in self.runs.get(name, ())), default=None)


def progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def located(node: Any, folder: Path) -> Any:
    """Return a recipe in which the names of models are replaced by their paths."""
    if isinstance(node, list):
        return [located(entry, folder) for entry in node]
    if not isinstance(node, dict):
        return node
    return {
        key: str(folder / value) if key in ("model", "base_model") else located(value, folder)
        for key, value in node.items()
    }


def models_of(node: Any) -> Iterator[str]:
    """Yield the models that a recipe names, with repetitions."""
    if isinstance(node, list):
        for entry in node:
            yield from models_of(entry)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("model", "base_model"):
                yield value
            else:
                yield from models_of(value)


def write_recipe(method: str, models: Path, file: Path) -> dict[str, Any]:
    """Write the recipe of `method` as JSON, which is YAML, and return it."""
    recipe = located({"merge_method": method, **METHODS[method], "dtype": "bfloat16"}, models)
    file.write_text(json.dumps(recipe, indent=2) + "\n")
    return dict(recipe)


def contenders(method: str, models: Path, options: argparse.Namespace) -> list[Contender]:
    """Return who merges by `method`, in the order in which they take turns."""
    recipe_file = options.work / f"recipe-{method}.yml"
    inputs = tuple(dict.fromkeys(models_of(write_recipe(method, models, recipe_file))))
    size = (models / "base" / "model.safetensors").stat().st_size

    def contender(name: str, command: Sequence[str], output: Path, runs: int, **environment: str) -> Contender:
        return Contender(name, tuple(command), output, size, environment, runs)

    def output(name: str) -> Path:
        return Path(options.work / f"out-{name}")

    ours = [*options.ours, str(recipe_file), str(output("ours")), "--overwrite", "--quiet"]
    floor = [sys.executable, "-I", "-S", str(HERE / "floor.py"), str(output("floor")), *inputs]
    entrants = [
        contender("ours", ours, output("ours"), options.runs, PYTHONPATH=options.source_path),
        contender("floor", floor, output("floor"), options.runs),
    ]
    if options.peer:
        peer = [str(options.peer / "bin" / "mergekit-yaml"), str(recipe_file), str(output("peer"))]
        peer += ["--no-copy-tokenizer", "--quiet"]
        entrants.append(contender("peer", peer, output("peer"), options.peer_runs, HF_HUB_OFFLINE="1"))
    return entrants


def remove_outputs(work: Path) -> None:
    for path in work.glob("out-*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def written_bytes(output: Path) -> int:
    files = [output] if output.is_file() else output.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def measure(contender: Contender, work: Path) -> Run:
    """Run a contender from a clean start and check that it wrote a model; its messages go to `work/log-NAME.txt`."""
    remove_outputs(work)
    log = work / f"log-{contender.name}.txt"
    # The caller's PYTHONPATH would put this checkout in the place of the peer's own package.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with log.open("wb") as messages:
        began = time.perf_counter()
        process = subprocess.Popen(
            contender.command,
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            env=inherited | contender.environment,
            cwd=work,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-8:]
        raise BenchmarkError("\n    ".join([f"exit code {process.returncode}: {shlex.join(contender.command)}", *last]))
    written = written_bytes(contender.output)
    wider = contender.name == "peer" and 1.99 < written / contender.output_bytes < 2.01  # float32 from some methods
    if not wider and not 0.99 < written / contender.output_bytes < 1.01:
        raise BenchmarkError(f"{contender.output} has {written} bytes of weights, expected {contender.output_bytes}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MB)


def warm(models: Path) -> None:
    """Read all models once, so that they are in the page cache."""
    buffer = bytearray(1 << 20)
    for file in models.glob("*/model.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def compete(method: str, entrants: Sequence[Contender], work: Path, warm_up: bool) -> Result:
    """Let the contenders take turns; who fails once is out."""
    result = Result(method)
    out: set[str] = set()
    rounds = max(entrant.runs for entrant in entrants)
    for turn in range(-1 if warm_up else 0, rounds):
        for entrant in entrants:
            if entrant.name in out or turn >= entrant.runs or (turn < 0 and entrant.name == "peer"):
                continue
            progress(f"{method}: {entrant.name} " + (f"run {turn + 1} of {entrant.runs}" if turn >= 0 else "warm-up"))
            try:
                run = measure(entrant, work)
            except (BenchmarkError, OSError) as error:
                result.failures.append(f"{method}: {entrant.name}: {error}")
                out.add(entrant.name)
                continue
            if turn >= 0:
                result.runs.setdefault(entrant.name, []).append(run)
    return result


def middle(values: Sequence[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f}" if values else "-"


def lowest(values: Sequence[float]) -> str:
    return f"{min(values):.2f}" if values else "-"


def spread(values: Sequence[float]) -> str:
    """Show the median and, in brackets, the range."""
    return f"{median(values):.2f} [{min(values):.2f}–{max(values):.2f}]" if values else "-"


def megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def ratios(result: Result, startup: float) -> list[float]:
    """Return our time without start-up over the time of the floor that ran right after it, for every pair."""
    pairs = zip(result.seconds("ours"), result.seconds("floor"), strict=False)
    return [(ours - startup) / floor for ours, floor in pairs]


def speed_row(result: Result, startup: float, peer: bool) -> list[str]:
    ours, floor, theirs = (result.seconds(name) for name in ("ours", "floor", "peer"))
    row = [result.method, middle(floor), lowest(floor), middle(ours), lowest(ours)]
    row += [
        middle([value - startup for value in ours]),
        spread(ratios(result, startup)),
        megabytes(result.peak_mb("ours")),
    ]
    if peer:
        speed_up = [median(theirs) / median(ours)] if ours and theirs else []
        row += [middle(theirs), middle(speed_up, 1), megabytes(result.peak_mb("peer"))]
    return row


def memory_row(small: Result, large: Result, peer: bool) -> list[str]:
    row = [small.method]
    for name in ("ours", "peer") if peer else ("ours",):
        row += [megabytes(small.peak_mb(name)), megabytes(large.peak_mb(name))]
    return row


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join([*lines[:1], "  ".join("-" * width for width in widths), *lines[1:]])


def speed_table(results: Sequence[Result], startup: float, peer: bool) -> str:
    head = ["method", "floor s", "min", "ours s", "min", f"ours-{startup:g} s", "ratio to floor", "peak MB"]
    head += ["peer s", "peer/ours", "peer MB"] if peer else []
    return table(head, [speed_row(result, startup, peer) for result in results])


def memory_table(small: Sequence[Result], large: Sequence[Result], peer: bool) -> str:
    head = ["method", "peak MB, 1x", "2x"] + (["peer MB, 1x", "2x"] if peer else [])
    return table(head, [memory_row(*pair, peer) for pair in zip(small, large, strict=True)])


def make_models(folder: Path, scale: int) -> None:
    """Make the models in a process of its own, which needs NumPy and much memory, and read them once."""
    progress(f"models in {folder}")
    command = [sys.executable, str(HERE / "make_models.py"), str(folder), "--scale", str(scale)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise SystemExit(f"\n{made.stderr}cannot make the models: try another interpreter, one with NumPy")
    os.sync()
    warm(folder)


def first_line(command: Sequence[str]) -> str | None:
    """Return the first line that a command prints, or None if it cannot."""
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return (shown.splitlines() or [""])[0]


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """Say where and with what the figures were measured."""
    ask = "from importlib.metadata import version as v; print('mergekit', v('mergekit'), 'torch', v('torch'))"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "machine": platform.platform(),
        "commit": first_line(["git", "describe", "--always", "--dirty"]),
        "versions": {
            "python": platform.python_version(),
            "numpy": installed("numpy"),
            "numba": installed("numba"),
            "peer": first_line([str(options.peer / "bin" / "python"), "-I", "-c", ask]) if options.peer else None,
        },
        "arguments": sys.argv[1:],
        "startup_seconds": options.startup,
    }


def measure_all(options: argparse.Namespace, folder: Path, scale: int) -> list[Result]:
    """Make and warm the models of `scale`, then measure every chosen method on them; once each on the large ones."""
    make_models(folder, scale)
    if scale == 1:
        return [compete(name, contenders(name, folder, options), options.work, True) for name in options.method]
    once = argparse.Namespace(**vars(options) | {"runs": 1, "peer_runs": min(1, options.peer_runs)})
    return [compete(name, contenders(name, folder, once), options.work, False) for name in options.method]


def parse() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=cache / "mergekit-bench", help="models and outputs (%(default)s)")
    parser.add_argument("--method", action="append", choices=METHODS, help="repeat for several; all without it")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of ours and of the floor (%(default)s)")
    parser.add_argument("--ours", type=shlex.split, help="our command, `mergekit-yaml`; this checkout without it")
    parser.add_argument("--startup", type=float, default=0.6, help="seconds of start-up to subtract (%(default)s)")
    parser.add_argument("--peer", type=Path, help="environment that has another mergekit in bin/mergekit-yaml")
    parser.add_argument("--peer-runs", type=int, default=1, help="counted runs of the peer (%(default)s)")
    parser.add_argument("--scale2", action="store_true", help="measure the memory on models of twice the size too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save every run and the circumstances")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.method = options.method or list(METHODS)
    options.source_path = os.environ.get("PYTHONPATH", "") if options.ours else str(HERE.parent / "src")
    options.ours = options.ours or [sys.executable, "-m", "mergekit.cli.main", "yaml"]
    commands = [options.ours[0]] + ([str(options.peer.absolute() / "bin" / "mergekit-yaml")] if options.peer else [])
    for command in commands:
        if shutil.which(command) is None:
            parser.error(f"there is no command {command}")
    options.peer = options.peer and options.peer.absolute()
    return options


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    remove_outputs(options.work)
    small = measure_all(options, options.work, 1)
    large = measure_all(options, options.work / "2x", 2) if options.scale2 else []
    remove_outputs(options.work)
    progress("")
    print(speed_table(small, options.startup, bool(options.peer)))
    if large:
        print("\n" + memory_table(small, large, bool(options.peer)))
    if options.json:
        report = {"circumstances": circumstances(options), "results": [asdict(result) for result in small]}
        report["results_2x"] = [asdict(result) for result in large]
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if failures := [failure for result in small + large for failure in result.failures]:
        raise SystemExit("\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
