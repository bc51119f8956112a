"""What a merge method is: a frozen dataclass whose fields are the recipe's parameters.

The engine makes one instance per output tensor, with the parameters resolved for that tensor, asks it for
`reductions()` (what must be known about the whole tensor first) and then for the mathematics on one block after the
other: `merge` on float32 arrays of any library, `fuse` on raw entries with a compiled kernel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mergekit.kernels import GRAIN

Array = Any
"""An array of NumPy, torch or another library of the Python array API standard."""

Raw = NDArray[Any]
PerModel = tuple[float, ...]
"""One number for each of `Block.models`, in their order."""

Kind = Literal["float", "int", "bool", "str"]
Stats = Mapping[str, Any]
"""Results of the reductions by name."""


Reducers = Any
"""The kernels that reductions are made of: :mod:`~mergekit.kernels.fused` or :mod:`~mergekit.kernels.arrays`."""


@dataclass(frozen=True, slots=True)
class Target:
    """The output tensor that a block belongs to.

    Parameters:
        name: in the output.
        shape: of the tensor.
        grain: entries that are seen and summed together: blocks begin at its multiples, and end there or with the
            tensor.
        seed: of random methods.
    """

    name: str
    shape: tuple[int, ...]
    grain: int = GRAIN
    seed: int = 0

    @property
    def count(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Entries of a row: the tensor's last dimension."""
        return self.shape[-1] if self.shape else 1


def row_grain(shape: tuple[int, ...]) -> int:
    """Grain of methods that look at whole rows, a row being the last dimension: at least one row.

    Example:
        >>> row_grain((1000, 896)), row_grain((10, 5000))
        (3584, 5000)
    """
    width = max(1, shape[-1] if shape else 1)
    return width * max(1, GRAIN // width)


@dataclass(frozen=True, slots=True)
class Block:
    """The same stretch of entries of all operands of one tensor.

    Parameters:
        rows: shape (k, n): the base first, if there is one, then the models in the recipe's order. Raw entries for
            `fuse`, float32 for `merge`.
        based: whether the first row is the base.
        start: index in the tensor of the first entry, a multiple of the grain.
        reducers: kernels that understand `rows`.
        target: the tensor.
    """

    rows: Array
    based: bool
    start: int
    reducers: Reducers
    target: Target

    @property
    def grains(self) -> int:
        """How many grains the block holds."""
        entries: int = self.rows.shape[1]
        return -(-entries // self.target.grain)

    @property
    def base(self) -> Array:
        """Entries of the base, shape (n,)."""
        if not self.based:
            raise ValueError("this block has no base")
        return self.rows[0]

    @property
    def origin(self) -> Array:
        """What kernels subtract from the models: the base, or nothing, of shape (0,)."""
        return self.rows[0] if self.based else self.rows[0, :0]

    @property
    def models(self) -> Array:
        """Entries of the models without the base, shape (k, n)."""
        return self.rows[1:] if self.based else self.rows

    @property
    def deltas(self) -> Array:
        """Task vectors: models minus base, shape (k, n); only on float32 rows."""
        return self.models - self.base

    def noise(self, model: int) -> Array:
        """Numbers drawn evenly from 0 to 2³¹ − 1, one for each entry of a model; only on float32 rows.

        They depend on the seed, the tensor's name, the model's index and the entry's index, and on nothing else.
        """
        from mergekit.kernels.arrays import noise

        return noise(self.rows[0], self.start, self.keys(model))

    def keys(self, model: int) -> Raw:
        """Keys of a model's noise, for kernels that draw it themselves."""
        from mergekit.kernels.streams import stream_keys

        return stream_keys(self.target.seed, self.target.name, model)


@dataclass(frozen=True, slots=True)
class Needs:
    """How many models a method takes, and what the base is to it.

    Parameters:
        base: "required"; "optional", used where the recipe gives one; or "ignored": a base is a model like others
            if it is listed, and no input otherwise.
        least, most: bounds of the number of models, the base not counted unless it is ignored.
    """

    base: Literal["required", "optional", "ignored"]
    least: int = 1
    most: int | None = None

    def __str__(self) -> str:
        count = "" if self.most == self.least else "at least "
        models = f"{self.least} model{'' if self.least == 1 else 's'}"
        return count + models + {"required": " and a base", "optional": ", a base if wanted", "ignored": ""}[self.base]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method, as recipes spell it."""

    name: str
    field: str
    kind: Kind
    per_model: bool
    default: bool | int | float | str | None
    required: bool
    low: float | None
    high: float | None
    doc: str
    choices: tuple[str, ...] = ()

    def fits(self, value: bool | int | float | str) -> bool:
        """Whether a value of the right type lies within the bounds, or is one of the choices."""
        if isinstance(value, str):
            return not self.choices or value in self.choices or value == self.default
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def bounds(self) -> str:
        """The bounds or choices in words, empty without any."""
        if self.choices:
            return " or ".join(self.choices)
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"at least {self.low:g}"
        return "" if self.high is None else f"at most {self.high:g}"


def parameter(
    default: Any = MISSING,
    *,
    doc: str,
    kind: Kind = "float",
    name: str | None = None,
    per_model: bool = False,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a field of a method as a parameter of recipes.

    Parameters:
        default: value where the recipe gives none; without it the recipe must give one.
        doc: one line for users.
        kind: type of the value in recipes.
        name: spelling in recipes if the field's name cannot be it (`lambda`).
        per_model: whether each model has a value of its own.
        low, high: bounds, both inclusive.
        choices: the words that a `str` may be, besides the default.
    """
    bounds = {"low": low, "high": high, "choices": choices}
    own = {"kind": kind, "per_model": per_model, "doc": doc, "name": name, **bounds}
    return field(metadata={"parameter": {**own, "default": default}})


def _declared(declaration: Field[Any]) -> Parameter:
    entry = declaration.metadata["parameter"]
    required = entry["default"] is MISSING
    return Parameter(
        name=entry["name"] or declaration.name,
        field=declaration.name,
        kind=entry["kind"],
        per_model=entry["per_model"],
        default=None if required else entry["default"],
        required=required,
        low=entry["low"],
        high=entry["high"],
        doc=entry["doc"],
        choices=entry.get("choices", ()),
    )


class Search(ABC):
    """A reduction at work on one tensor: sweeps over its blocks until `done`."""

    done: bool = False

    @abstractmethod
    def scratch(self) -> Any:
        """Room for what one worker finds in one sweep."""

    @abstractmethod
    def visit(self, block: Block, scratch: Any) -> None:
        """Look at one block; blocks come in ascending order of `start` within one scratch."""

    @abstractmethod
    def close(self, scratches: Sequence[Any]) -> None:
        """End a sweep, with the scratches of all workers in the order of their entries."""

    @abstractmethod
    def result(self) -> Any:
        """What the method's `stats` hold under the reduction's name, once `done`."""

    def wanted(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of the entries [start, stop) that this sweep needs to see, in ascending order.

        They begin at multiples of the grain, and end there or with the tensor, as [start, stop) does.
        """
        yield start, stop


class Reduction(ABC):
    """Something to be known about a whole tensor before its blocks can be merged."""

    name: str

    @abstractmethod
    def begin(self, target: Target, sample: Callable[[], Sequence[Block]], stats: Stats) -> Search:
        """Start on a tensor.

        Parameters:
            target: the tensor.
            sample: reads a few grains from all over the tensor, or all of it if it is small.
            stats: results of the reductions listed before this one.
        """


class Method(ABC):
    """A merge method; see the module's text."""

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    needs: ClassVar[Needs]

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """The parameters that recipes can set, in the order of declaration."""
        declared = fields(cls)  # type: ignore[arg-type]
        return tuple(_declared(entry) for entry in declared if "parameter" in entry.metadata)

    def mistakes(self) -> Iterator[str]:
        """What is wrong with this combination of values, each in one sentence; asked before any weight is read."""
        yield from ()

    def remarks(self) -> Iterator[str]:
        """What a user should know about this combination of values, each in one sentence; asked when planning."""
        yield from ()

    def grain(self, shape: tuple[int, ...]) -> int:
        """Entries of a tensor that must be seen together, such as whole rows."""
        del shape
        return GRAIN

    def held(self, shape: tuple[int, ...]) -> int:
        """Bytes that a worker holds for the reductions of a tensor, where that is more than a few megabytes."""
        del shape
        return 0

    def scratch(self, operands: int) -> int:
        """Bytes for each entry of a block that merging takes beside `operands` rows as float32, and the result."""
        del operands
        return 0

    def reductions(self) -> tuple[Reduction, ...]:
        """What must be known about the whole tensor, in the order in which it is found out."""
        return ()

    def reduced(self) -> Method:
        """The method without what its reductions do not depend on: where these are equal, so are the `stats`."""
        return self

    @abstractmethod
    def merge(self, block: Block, stats: Stats) -> Array:
        """The merged entries of a block of float32 arrays: float32, shape (n,)."""

    def fuse(self, block: Block, stats: Stats, out: Raw) -> None:
        """Write the merged entries of a block of raw entries into `out`, raw as well.

        Methods whose time matters replace this by a kernel of their own; a law of the test suite holds both equal.
        """
        from mergekit.kernels import arrays
        from mergekit.kernels.fused import narrow, widen

        wide = np.empty(block.rows.shape, np.float32)
        for row, entries in zip(wide, block.rows, strict=True):
            widen(entries, row)
        merged = self.merge(Block(wide, block.based, block.start, arrays, block.target), stats)
        narrow(np.ascontiguousarray(merged, np.float32), out)

    def untouched(self) -> int | None:
        """Index of the model whose bytes are the result, if the result is a copy; None if there is work to do."""
        return None
