"""The plan: a flat list of independent tensor tasks, in integers, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergekit.checkpoint import Shard, TensorSpec
from mergekit.checkpoint.hub import Remote
from mergekit.errors import Findings
from mergekit.kernels import GRAIN
from mergekit.methods import Method, Target
from mergekit.plan.memory import Memory
from mergekit.plan.models import Model
from mergekit.plan.views import StoredView, View
from mergekit.recipe import Recipe
from mergekit.tokenizer.alignment import Alignment


@dataclass(frozen=True, slots=True)
class Operand:
    """One input of a tensor task.

    Parameters:
        model: index in `Plan.models`.
        view: what is read and where it is.
    """

    model: int
    view: View


@dataclass(frozen=True, slots=True)
class TensorTask:
    """One output tensor.

    Parameters:
        out: name, dtype and shape of the output.
        method: the method with the parameters of this tensor.
        operands: inputs, the base first if `based`; all have as many entries as the output.
        based: whether the first operand is the base.
        identical: the operands hold integers: they must be the same, and are copied.
        seed: of random methods.
    """

    out: TensorSpec
    method: Method
    operands: tuple[Operand, ...]
    based: bool
    identical: bool = False
    seed: int = 0

    @property
    def target(self) -> Target:
        """What the method is told about the output."""
        grain = GRAIN if self.identical else self.method.grain(self.out.shape)
        return Target(self.out.name, self.out.shape, grain, self.seed)

    @property
    def copied(self) -> Operand | None:
        """The operand whose bytes are the output's, if there is nothing to compute."""
        if self.identical:
            return self.operands[0]
        index = self.method.untouched()
        if index is None:
            return None
        operand = self.operands[index + self.based]
        stored = isinstance(operand.view, StoredView) and operand.view.spec.dtype == self.out.dtype
        return operand if stored else None

    @property
    def read_bytes(self) -> int:
        """Bytes of all operands."""
        return sum(operand.view.nbytes for operand in self.operands)

    @property
    def kept_bytes(self) -> int:
        """Bytes that each worker holds beside its buffers while it works on this tensor."""
        return sum(operand.view.kept_bytes for operand in self.operands)

    @property
    def row_format(self) -> str:
        """The format in which all operands are held: their own if they share one that kernels read, else F32."""
        formats = {operand.view.row_format for operand in self.operands}
        return formats.pop() if len(formats) == 1 else "F32"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Input tensors that are not in the output.

    Parameters:
        model: index in `Plan.models`.
        reason: one clause.
        tensors: names in that model.
    """

    model: int
    reason: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Treated:
    """Output tensors whose inputs are not all there or not of one shape, and what was done about it.

    Parameters:
        rule: of the recipe, ``on_missing: base``.
        tensors: names in the output; also those that are not written for lack of the base's.
    """

    rule: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a merge will do.

    Parameters:
        recipe: what was asked for.
        models: the models it names, the donor of config and other files first.
        method: the method's class.
        tasks: one for each output tensor.
        shards: files for the output tensors.
        copies: files of the donor that are taken over, output name to source.
        texts: files that are written anew, output name to contents.
        leftovers: input tensors that are in no output.
        findings: warnings and notices for the user.
        memory: workers and their buffers.
        seed: of the random methods.
        treated: output tensors that a rule of the recipe was needed for.
        options: what beside the recipe and the seed decides what is written; in the types of JSON, for the report.
        alignments: how the vocabularies lie to the donor's, by index of the model; none if their files are the same.
    """

    recipe: Recipe
    models: tuple[Model, ...]
    method: type[Method]
    tasks: tuple[TensorTask, ...]
    shards: tuple[Shard, ...]
    copies: Mapping[str, Path]
    texts: Mapping[str, str]
    leftovers: tuple[Leftover, ...]
    findings: Findings
    memory: Memory
    seed: int
    treated: tuple[Treated, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    alignments: Mapping[int, Alignment] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = {
            "tensors": len(self.tasks),
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "memory": self.memory.peak,
            "warnings": len(self.findings.warnings),
        }
        return f"<Plan {self.method.name}: {', '.join(f'{name} {count}' for name, count in counts.items())}>"

    @property
    def remote(self) -> dict[Path, Remote]:
        """The files that are left on the hub."""
        return {file: found for model in self.models for file, found in model.checkpoint.remote.items()}

    @property
    def streams(self) -> int:
        """Operands that all workers together read at a time, at most."""
        return self.memory.workers * max((len(task.operands) for task in self.tasks), default=1)

    @property
    def read_bytes(self) -> int:
        """Bytes of all operands of all tasks, each counted once."""
        return sum(task.read_bytes for task in self.tasks)

    @property
    def write_bytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(task.out.nbytes for task in self.tasks)
