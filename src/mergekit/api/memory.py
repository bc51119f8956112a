"""Tensors that are merged in memory, by the same engine that merges files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np

from mergekit.api.arrays import Octets
from mergekit.checkpoint import Extent
from mergekit.checkpoint.reading import Buffer, octets
from mergekit.engine import Compute
from mergekit.engine.at_hand import Reader
from mergekit.engine.local import Recall, Team, crew
from mergekit.errors import NonFiniteError
from mergekit.plan import Memory, TensorTask


@final
@dataclass(frozen=True, slots=True)
class HeldTensors:
    """Tensors in memory that are read like files.

    Parameters:
        contents: the bytes of each; its key stands for the file.
    """

    contents: dict[Path, Octets] = field(default_factory=dict)

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""
        octets(into)[:] = self.contents[extent.file][extent.start : extent.stop].data

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a tensor, all of one size."""
        room, held = octets(into), self.contents[file]
        for start, place in zip(starts, places, strict=True):
            room[place : place + nbytes] = held[start : start + nbytes].data

    def descriptor(self, file: Path) -> None:
        """None: it is no file."""

    def prefetch(self, extent: Extent) -> None:
        """Nothing: it is here."""


@final
@dataclass(slots=True)
class Sink:
    """Takes in one tensor at a time."""

    held: Octets = field(default_factory=lambda: np.empty(0, np.uint8))

    def outlet(self, name: str) -> None:
        """None: it is no file."""

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Take a part of the tensor; several threads may write at a time."""
        del name
        self.held[offset : offset + data.nbytes] = octets(data)


@contextmanager
def merger(
    memory: Memory, files: Reader, compute: Compute, recall: Recall | None = None
) -> Iterator[Callable[[TensorTask], Octets]]:
    """Workers that do one task after the other; what they are given to do returns the bytes of its output.

    Parameters:
        memory: sizes of the buffers.
        files: the inputs.
        compute: where the mathematics runs.
        recall: what reductions have found in earlier merges.
    """
    sink = Sink()
    workers = crew(memory, files, sink, compute, lambda _: None)
    with ThreadPoolExecutor(len(workers)) as pool:
        team = Team(workers, pool if len(workers) > 1 else None, recall)

        def merge(task: TensorTask) -> Octets:
            sink.held = np.empty(task.out.nbytes, np.uint8)
            outcome = team.run(0, task)
            if outcome.broken:
                files_read = dict.fromkeys(operand.view.files[0] for operand in task.operands)
                raise NonFiniteError(
                    f"{outcome.broken} of {task.out.count} entries of `{task.out.name}` are infinite or not a number",
                    place=", ".join(files_read),
                )
            return sink.held

        yield merge
