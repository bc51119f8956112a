"""Candidates that are judged on the machines of a Ray cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from mergekit.engine.connection import connected
from mergekit.errors import DeviceError
from mergekit.evolution.candidate import sweep_memory
from mergekit.evolution.evaluation import Evaluator, Job, Judged
from mergekit.evolution.workers import Workers

_ATTEMPTS = 3  # at a candidate whose process or machine was lost


@dataclass(frozen=True, slots=True)
class Team:
    """Actors that all find a place: one that finds none would let its candidates wait for ever.

    Parameters:
        count: how many.
        threads: cores of each.
        accelerator: what each has of an accelerator, from 0 to 1.
    """

    count: int
    threads: int
    accelerator: float


def team_of(rooms: Sequence[tuple[int, int]], count: int | None, threads: int | None) -> Team:
    """As many actors as are wanted, with as many cores each as there are for all of them.

    Parameters:
        rooms: cores and accelerators of each machine.
        count: actors, fewer if there is no place; None for one on each accelerator, or else on each machine.
        threads: cores of each, at most those of one machine; None for all that there are, shared out evenly.

    Raises:
        DeviceError: there are no cores.

    Example:
        >>> team_of([(6, 0), (2, 0)], None, None)
        Team(count=2, threads=3, accelerator=0.0)
        >>> team_of([(8, 2)], 3, None)
        Team(count=3, threads=2, accelerator=0.5)
        >>> team_of([(2, 0)], 5, None).count
        2
    """
    accelerators = sum(own for cores, own in rooms if cores)
    most = max((cores for cores, own in rooms if own or not accelerators), default=0)
    if not most:
        raise DeviceError("the Ray cluster has no cores", expected="at least one to judge with", hint="`ray status`")
    wanted = count or accelerators or sum(cores > 0 for cores, _ in rooms)
    each = -(-wanted // accelerators) if accelerators else 0  # actors that share an accelerator

    def places(cores: int) -> int:
        """Actors of so many cores that there is room for."""
        found = ((own // cores, each * accelerated) for own, accelerated in rooms)
        return sum(min(pair) if accelerators else pair[0] for pair in found)

    sizes = [min(threads, most)] if threads else range(most, 0, -1)
    size = next((own for own in sizes if places(own) >= wanted), min(sizes))
    return Team(min(wanted, places(size)), size, 1 / each if each else 0.0)


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
        with ExitStack() as ending:
            self._ray = ending.enter_context(connected(address))
            ending.enter_context(redirect_stdout(sys.stderr))  # where Ray tells of what was lost
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            rooms = [(int(own.get("CPU", 0)), int(own.get("GPU", 0))) for own in nodes]
            team = team_of(rooms, count, threads)
            actor = self._ray.remote(_Judge).options(
                num_cpus=team.threads, num_gpus=team.accelerator, max_restarts=-1, scheduling_strategy="SPREAD"
            )
            device = "cuda" if team.accelerator else None
            own = evaluator.prepare(team.threads, device, -(-team.count // len(nodes)))
            self.count = team.count
            self._actors = [actor.remote(own, Path.cwd()) for _ in range(team.count)]
            self._idle = [*self._actors]
            self._ending = ending.pop_all()

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
            except self._ray.exceptions.RayTaskError:
                raise  # a mistake of ours
            except self._ray.exceptions.RayError as error:
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
        sweep_memory()  # of actors that were lost here
        self._evaluator = evaluator

    def judge(self, job: Job) -> Judged:
        return self._evaluator.judge(job)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
