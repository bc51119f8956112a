"""One tensor task on tensors in memory, carried out by the engine on any compute."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from method_samples import sample, tensors

from mergekit.api.memory import HeldTensors
from mergekit.checkpoint import DTYPES, Extent, Stored, TensorSpec
from mergekit.engine.local import Team, crew
from mergekit.kernels import GRAIN, RAW
from mergekit.plan import Memory, Operand, TensorTask
from mergekit.plan.views import Pieces

COUNT = 7 * GRAIN + 1234
SHAPES = ((COUNT,), (37, 811), (5, 7, 811))


@dataclass
class Counting:
    """Tensors in memory that know how many of their bytes were read."""

    held: HeldTensors
    nbytes: int = 0

    def read(self, extent, into):
        self.nbytes += extent.nbytes
        self.held.read(extent, into)

    def gather(self, *words):
        self.held.gather(*words)

    def prefetch(self, extent):
        pass

    def descriptor(self, file):
        pass


@dataclass
class Tensor:
    """A task, its operands' bytes, and what came of it last.

    Parameters:
        task: of a method with sampled parameters.
        contents: the bytes of each operand.
        advanced: what workers told of their progress.
    """

    task: TensorTask
    contents: dict[Path, np.ndarray]
    nbytes_read: int = 0
    advanced: list = field(default_factory=list)

    def merged(self, compute, stripe=GRAIN, workers=1):
        """The output, raw: `stripe` entries at a time."""
        files, out = Counting(HeldTensors(self.contents)), np.empty(self.task.out.nbytes, np.uint8)
        self.advanced = []
        team = crew(Memory(workers, stripe, 0), files, Into(out), compute, self.advanced.append)
        with pool_for(team) as pool:
            self.outcome = Team(team, pool).run(0, self.task)
        self.nbytes_read = files.nbytes
        return out.view(RAW[self.task.out.dtype.name])


@contextmanager
def pool_for(team):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(team)) as pool:
        yield pool if len(team) > 1 else None


@dataclass
class Into:
    out: np.ndarray

    def outlet(self, name):
        pass

    def write(self, name, offset, data):
        octets = np.ascontiguousarray(data).view(np.uint8)
        self.out[offset : offset + octets.size] = octets


def tensor_of(name, seed, raw_format, out_format=None, shape=None):
    """A method with the sample's parameters, and tensors for it."""
    found = sample(name, seed)
    shape = shape or SHAPES[seed % len(SHAPES)]
    base, models = tensors(seed, found, shape, raw_format)
    return tensor_with(found.method, base, models, raw_format, out_format)


def tensor_with(method, base, models, raw_format, out_format=None):
    """The task of a method on raw tensors."""
    rows = [row for row in (base, *models) if row is not None]
    contents = {
        Path(str(index)): np.ascontiguousarray(row).view(np.uint8).reshape(-1) for index, row in enumerate(rows)
    }
    spec = TensorSpec("tensor", DTYPES[raw_format], rows[0].shape)
    operands = tuple(
        Operand(index, Pieces.of(Stored(spec, Extent(file, 0, spec.nbytes)))) for index, file in enumerate(contents)
    )
    out = TensorSpec("tensor", DTYPES[out_format or raw_format], rows[0].shape)
    return Tensor(TensorTask(out, method, operands, base is not None), contents)
