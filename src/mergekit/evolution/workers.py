"""Where candidates are judged: in this process, or in several on this machine."""

from __future__ import annotations

import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, final

from mergekit.evolution.candidate import sweep_memory
from mergekit.evolution.evaluation import Evaluator, Job, Judged

_ENDING = 10.0  # seconds in which a process may end by itself


class Workers(ABC):
    """Judges candidates, several at a time; a context whose end lets the workers go."""

    count: int = 1
    """Candidates that are judged at a time."""

    @abstractmethod
    def judge(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Judged]]:
        """Judge candidates; pairs come as they are done.

        Parameters:
            jobs: a job is taken from it when a worker is free, so that whoever makes them can stop in time.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the workers go."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@final
class Alone(Workers):
    """One candidate after the other in this process."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def judge(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Judged]]:
        """Judge candidates in their order."""
        for job in jobs:
            yield job, self._evaluator.judge(job)

    def close(self) -> None:
        """Nothing."""


@final
class Processes(Workers):
    """Several processes. One that dies fails its candidate, and another one takes its place.

    Parameters:
        evaluator: every process has a copy.
        count: processes; they share the cores.
        devices: accelerators that they share in turn, as torch names them.
    """

    def __init__(self, evaluator: Evaluator, count: int, devices: tuple[str, ...] = ()) -> None:
        threads = max(1, (os.cpu_count() or 1) // count)
        self.count = count
        self._copies = [
            evaluator.prepare(threads, devices[index % len(devices)] if devices else None, count)
            for index in range(count)
        ]
        self._running: dict[int, tuple[Any, Connection]] = {}

    def judge(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Judged]]:
        """Judge candidates on whichever process is free."""
        waiting = iter(jobs)
        busy: dict[int, Job] = {}
        while True:
            for index in range(len(self._copies)):
                job = None if index in busy else next(waiting, None)
                if job is not None:
                    with suppress(BrokenPipeError):  # what has ended is seen when its answer is waited for
                        self._connection(index).send(job)
                    busy[index] = job
            if not busy:
                return
            ready = wait([self._running[index][1] for index in busy])
            for index in [index for index in busy if self._running[index][1] in ready]:
                yield busy.pop(index), self._received(index)

    def _connection(self, index: int) -> Connection:
        if index in self._running and not self._running[index][0].is_alive():
            self._running.pop(index)[1].close()
        if index not in self._running:
            context = get_context("spawn")
            own, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._copies[index]), daemon=True)
            process.start()
            theirs.close()
            self._running[index] = process, own
        return self._running[index][1]

    def _received(self, index: int) -> Judged:
        process, connection = self._running[index]
        try:
            judged: Judged = connection.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            connection.close()
            del self._running[index]
            sweep_memory()  # its candidate's folder may fill what the next one needs
            return Judged((), (), 0.0, f"the process that judged it ended with exit code {process.exitcode}")
        return judged

    def close(self) -> None:
        """End the processes, with what their candidates have started, and remove what these have left in memory."""
        for process, connection in self._running.values():
            connection.close()
            process.terminate()
        for process, _ in self._running.values():
            process.join(_ENDING)
            process.kill()
            process.join()
        self._running.clear()
        sweep_memory()


def _stop(number: int, frame: object) -> None:
    """End as by an exception, so that commands end and folders go."""
    del frame
    sys.exit(128 + number)


def _serve(connection: Connection, evaluator: Evaluator) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    signal.signal(signal.SIGTERM, _stop)
    try:
        while True:
            connection.send(evaluator.judge(connection.recv()))
    except (EOFError, BrokenPipeError):
        return
