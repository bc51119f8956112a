"""Give many damaged inputs to every reader of what strangers write: `python tests/fuzz/run.py --count 10000`.

Each input must be accepted with possible contents, or refused with a `MergekitError`, within two seconds and 500 MB.
Inputs that fail are made as small as hypothesis can, kept in `regressions/READER/`, and tried first from then on.

`--atheris READER` (with `pip install atheris`) lets coverage choose the inputs instead, until it is stopped.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")]

from fuzz_mutations import inputs  # noqa: E402
from fuzz_readers import READERS, REGRESSIONS, Reader, regressions_of, seeds_of  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis.errors import FlakyFailure  # noqa: E402

SECONDS, MEMORY = 2.0, 500_000_000


class HangError(Exception):
    """A reader took too long over an input."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise `HangError` in what takes longer; what does not listen to signals ends the process with a traceback."""

    def stop(_signal: int, _frame: object) -> None:
        raise HangError(f"more than {SECONDS} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process alone: the machine may be busy
    faulthandler.dump_traceback_later(15 * SECONDS, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def limit_memory(nbytes: int = MEMORY) -> None:
    """From now on this process may have so many bytes more, and `MemoryError` is what comes of asking for others."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * resource.getpagesize() + nbytes
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def judging(reader: Reader, folder: Path) -> Callable[[bytes], bool]:
    """What gives an input to a reader, under limits; raises whatever is wrong with how it takes it."""
    file = reader.prepare(folder)

    def judge(content: bytes) -> bool:
        file.write_bytes(content)
        with limited():
            return reader.judge(file)

    return judge


def fuzz(name: str, count: int, number: int, reader: Reader | None = None) -> str:
    """Give a reader its seeds, the inputs it once failed on, and new ones; returns what became of them.

    Parameters:
        name: of the reader.
        count: how many new inputs.
        number: seed of what is random.
        reader: if it is not the one of that name.
    """
    reader = reader or READERS[name]
    seeds = [file.read_bytes() for file in seeds_of(name)]
    tally = {True: 0, False: 0}
    last: list[bytes] = []
    with tempfile.TemporaryDirectory() as folder:
        judge = judging(reader, Path(folder))
        for content in seeds:
            assert judge(content), f"a seed of {name} is refused"
        for file in regressions_of(name):
            judge(file.read_bytes())

        @seed(number)
        @settings(
            max_examples=max(1, count),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
        )
        @given(inputs(reader.form, seeds))
        def try_one(content: bytes) -> None:
            last[:] = [content]
            tally[judge(content)] += 1

        try:
            if count:
                try_one()
        except Exception as error:
            keep(name, last[0])
            cause = error.exceptions[0] if isinstance(error, FlakyFailure) else error
            text = "".join(traceback.format_exception(cause))
            raise AssertionError(f"{name}: {type(cause).__name__}: {str(cause)[:500]}\n{text[-3000:]}") from None
    return f"{name}: {sum(tally.values()):,} inputs, {tally[True]:,} accepted, {tally[False]:,} refused"


def keep(name: str, content: bytes) -> None:
    """Keep an input on which a reader failed."""
    folder = REGRESSIONS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)


def by_coverage(name: str, arguments: list[str]) -> None:
    """Let atheris choose inputs by what they reach; returns never."""
    import atheris

    corpus, seeds = Path(tempfile.mkdtemp()), seeds_of(name)
    judge = judging(READERS[name], Path(tempfile.mkdtemp()))
    for file in seeds:
        judge(file.read_bytes())
        (corpus / file.name).write_bytes(file.read_bytes())
    atheris.instrument_all()

    def try_one(content: bytes) -> None:
        judge(content)

    atheris.Setup([sys.argv[0], *arguments, str(corpus)], try_one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz as the command line says; returns 1 if a reader failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="inputs for each reader; 1000 if not given")
    parser.add_argument("--seed", type=int, default=0, help="of what is random; 0 if not given")
    parser.add_argument("--atheris", metavar="READER", choices=READERS, help="let coverage choose the inputs")
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"all if not given: {', '.join(READERS)}")
    given_options, rest = parser.parse_known_args()
    warnings.simplefilter("ignore")
    if given_options.atheris:
        by_coverage(given_options.atheris, rest)
    failed = 0
    for name in given_options.readers or READERS:
        began = time.perf_counter()
        try:
            warm(name)
            print(
                fuzz(name, given_options.count, given_options.seed),
                f"in {time.perf_counter() - began:.1f} s",
                flush=True,
            )
        except AssertionError as error:
            failed += 1
            print("FAILED", error, flush=True)
    return 1 if failed else 0


def warm(name: str) -> None:
    """Import and compile what a reader needs before its memory is limited."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder:
        file = READERS[name].prepare(Path(folder))
        file.write_bytes(seeds_of(name)[0].read_bytes())
        READERS[name].judge(file)
    limit_memory()


if __name__ == "__main__":
    sys.exit(main())
