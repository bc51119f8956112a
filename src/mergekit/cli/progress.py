"""Tells on stderr what a long command does while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING, Any, final

from mergekit.cli.output import Output
from mergekit.errors import Problem

if TYPE_CHECKING:
    from mergekit.plan import Plan

_INTERVAL = 0.1  # seconds between updates of the bar


@final
class Narrator:
    """Prints findings and draws a bar; a context, whose end removes the bar.

    Parameters:
        output: where and how much to print.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self._bar: Any = None
        self._lock = Lock()
        self._done = 0
        self._drawn = 0.0

    def __enter__(self) -> Narrator:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.stop()

    def planned(self, plan: Plan) -> None:
        """Say what was found, what takes longer the first time, and start the bar."""
        notices = [*plan.findings.notices, *([_summary(plan)] if self.output.verbose else ())]
        self.begin("merging", plan.read_bytes + plan.write_bytes, plan.findings.warnings, notices)

    def begin(self, doing: str, nbytes: int, warnings: Iterable[Problem], notices: Iterable[str] = ()) -> None:
        """Say what was found, and start a bar over so many bytes."""
        self.output.warn(warnings)
        self.output.note(notices)
        if _compiles():
            self.output.note(["compiling kernels for this machine, once"])
        if self.output.drawing:
            self._bar = _bar(doing, nbytes)

    def advance(self, nbytes: int) -> None:
        """Count; draw now and then."""
        now = time.monotonic()
        with self._lock:
            self._done += nbytes
            if self._bar is None or now - self._drawn < _INTERVAL:
                return
            self._drawn = now
            self._draw()

    def _draw(self) -> None:
        self._bar.update(self._bar.task_ids[0], completed=self._done)


def _summary(plan: Plan) -> str:
    def megabytes(nbytes: int) -> str:
        return f"{nbytes / 1e6:,.1f} MB"

    return (
        f"{plan.method.name}: models {len(plan.models)}, tensors {len(plan.tasks)}, files {len(plan.shards)}, "
        f"threads {plan.memory.workers}; reads {megabytes(plan.read_bytes)}, writes {megabytes(plan.write_bytes)}, "
        f"takes at most {megabytes(plan.memory.peak)} of memory"
    )


def _compiles() -> bool:
    from mergekit.kernels.compiled import first_use

    return first_use()


def _bar(doing: str, total: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn(doing),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1 / _INTERVAL)
    bar.add_task(doing, total=total)
    bar.start()
    return bar
