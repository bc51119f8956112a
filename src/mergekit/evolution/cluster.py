"""Candidates that are judged on the machines of a Ray cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, final

from mergekit.engine.connection import connected
from mergekit.evolution.evaluation import Evaluator, Job, Judged
from mergekit.evolution.workers import Workers

_ATTEMPTS = 3  # at a candidate whose process or machine was lost


@final
class Machines(Workers):
    """Actors of Ray, each with a copy of the evaluator. One that is lost is made anew, and judges its candidate again.

    Models, texts and tasks are read on every machine, at the paths that the configuration names.

    Parameters:
        evaluator: every actor has a copy.
        address: of the cluster: "auto" for the one that this machine is part of, "HOST:PORT", or "local" for a new one
            of this machine alone, which ends with the search.
        count: actors; None for one on each accelerator, or else on each machine.
        threads: cores of each actor; None for those of a machine shared out evenly.

    Raises:
        DeviceError: Ray is not installed, or there is no such cluster.
    """

    def __init__(
        self, evaluator: Evaluator, address: str, count: int | None = None, threads: int | None = None
    ) -> None:
        self._ending = ExitStack()
        self._ray = self._ending.enter_context(connected(address))
        self._ending.enter_context(redirect_stdout(sys.stderr))  # where Ray tells of what was lost
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        cores, accelerators = (_resource(nodes, name) for name in ("CPU", "GPU"))
        count = count or int(accelerators) or len(nodes)
        threads = threads or max(1, int(cores) // count)
        accelerated = min(1.0, accelerators / count)
        actor = self._ray.remote(_Judge).options(
            num_cpus=threads, num_gpus=accelerated, max_restarts=-1, scheduling_strategy="SPREAD"
        )
        own = evaluator.prepare(threads, "cuda" if accelerated else None)
        self._actors = [actor.remote(own, Path.cwd()) for _ in range(count)]
        self._idle = [*self._actors]

    def judge(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Judged]]:
        """Judge candidates on whichever actor is free."""
        waiting = ((job, _ATTEMPTS) for job in jobs)
        again: list[tuple[Job, int]] = []
        running: dict[Any, tuple[Any, Job, int]] = {}
        while True:
            while self._idle and (following := again.pop() if again else next(waiting, None)):
                actor = self._idle.pop(0)
                running[actor.judge.remote(following[0])] = (actor, *following)
            if not running:
                return
            (ready,), _ = self._ray.wait([*running], num_returns=1)
            actor, job, left = running.pop(ready)
            self._idle.append(actor)
            try:
                judged: Judged = self._ray.get(ready)
            except self._ray.exceptions.RayActorError as error:
                if left > 1:
                    again.append((job, left - 1))
                    continue
                judged = Judged((), (), 0.0, f"the process that judged it was lost {_ATTEMPTS} times: {_line(error)}")
            yield job, judged

    def close(self) -> None:
        """Let the actors end, and leave the cluster."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._ending.close()


class _Judge:
    """What runs in an actor, in the folder that relative paths of recipes start from."""

    def __init__(self, evaluator: Evaluator, folder: Path) -> None:
        os.chdir(folder)
        self._evaluator = evaluator

    def judge(self, job: Job) -> Judged:
        return self._evaluator.judge(job)


def _resource(nodes: Iterable[Any], name: str) -> float:
    return float(sum(node["Resources"].get(name, 0.0) for node in nodes))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
