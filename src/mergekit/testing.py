"""For authors of merge methods: :func:`check_method` tries whether a method keeps the laws of methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mergekit.methods import Block, Method, Parameter, Target
from mergekit.methods.contract import Stats
from mergekit.methods.declarations import flaws

__all__ = ["LawError", "check_method"]

Entries = NDArray[Any]
Way = Literal["fuse", "numpy", "torch"]
Settings = Mapping[str, object]

_SHAPE = (28, 1100)  # seven to ten grains, the last one not full
_SHAPES = ((), (1,), (0,), (3, 0), (5,), (2, 3), (2, 1, 3))
_CUTS = ((1, 1), (1, 3), (3, 2))  # grains at a time, workers
_TRIALS = 4
_NEAR, _STRAY = 1e-5, 1e-3  # share of the greatest entry; share of entries that may be elsewhere, such as at a cut
_SWEEPS = 50
_NAME = "model.layers.0.mlp.up_proj.weight"


class LawError(AssertionError):
    """A merge method breaks laws; `failures` holds a sentence for each."""

    def __init__(self, method: str, failures: Sequence[str]) -> None:
        self.failures = tuple(failures)
        super().__init__("\n".join([f"`{method}` breaks {len(self.failures)} of the laws of methods", *self.failures]))


def check_method(
    method: type[Method],
    *,
    values: Settings | None = None,
    order_matters: bool = False,
    keeps_copies: bool = True,
) -> None:
    """Try a method on random tensors, with its defaults and with random parameters within their bounds.

    The laws: it declares and describes its parameters; the result is finite, float32, of the shape of one model, for
    any shape, and where all models are equal; the same bytes come out whatever the size of the blocks and the number of
    workers, every time; the operands stay as they are; `merge` on NumPy arrays, on torch tensors (if torch is there)
    and `fuse` agree; the order of the models is of no account; copies of one model give that model.

    Parameters:
        method: the class, which is also what `@merge_method` makes of a function.
        values: of parameters, by their names in recipes, instead of random ones; one value for all models.
        order_matters: the result depends on the order of the models.
        keeps_copies: with the defaults, copies of one model give that model.

    Raises:
        LawError: with everything that was found.

    Example:
        >>> from mergekit.methods import METHODS
        >>> check_method(METHODS["linear"])
    """
    failures = [f"it {flaw}" for flaw in flaws(method)]
    if failures:
        raise LawError(getattr(method, "__name__", repr(method)), failures)
    laws = [law for law in _LAWS if (law, order_matters) != (_order, True) and (law, keeps_copies) != (_copies, False)]
    failures += _undescribed(method)
    for seed in range(_TRIALS):
        trial = _trial(method, seed, values or {})
        for law in list(laws):
            found = _broken(law, trial)
            if found:
                failures.append(found)
                laws.remove(law)
    if failures:
        raise LawError(method.name, failures)


def _broken(law: Law, trial: Trial) -> str | None:
    """What a law has to say against a trial, if anything."""
    try:
        found = next(law(trial), None)
    except Exception as error:  # of the author's code
        found = f"{type(error).__name__}: {error}"
    return found and f"{(law.__doc__ or '').rstrip('.')}: {found} (with {trial})"


def _undescribed(method: type[Method]) -> Iterator[str]:
    from mergekit.methods.describe import describe

    found = describe(method)
    if not found.summary:
        yield "It has a docstring: there is none"
    missing = [name for name, meaning in found.meanings.items() if not meaning]
    if missing:
        yield f"Its docstring describes the parameters: `{'`, `'.join(missing)}` not, after `Parameters:`"
    if method.reference and not method.reference.startswith("https://"):
        yield f"Its reference is a link: {method.reference!r} does not begin with https://"


@dataclass(frozen=True, slots=True)
class Trial:
    """A method with parameters, and how many models it is to merge."""

    method: Method
    models: int
    based: bool
    seed: int

    def __str__(self) -> str:
        own = type(self.method).parameters()
        values = [f"{each.name}={getattr(self.method, each.field)!r}" for each in own]
        return ", ".join([*values, f"{self.models} models"])

    def tensor(self, shape: tuple[int, ...] = _SHAPE, dtype: str = "<f4") -> Tensor:
        """Operands near each other, with entries and deltas of 0.

        Entries are multiples of a step, so that deltas are exact, and equal or 0 only if they are so by design.
        """
        random = np.random.default_rng([self.seed, len(shape)])
        count, step = math.prod(shape), 2.0**-21
        origin = random.normal(0, 0.05, count)
        moves = random.normal(0, 0.01, (self.models, count)) * (random.random((self.models, count)) > 0.1)
        rows = np.concatenate([origin[None], origin + moves]) if self.based else origin + moves
        single = (np.rint(rows / step) * step).astype("<f4")
        cut = (single.view("<u4") >> 16).astype("<u2") if dtype == "<u2" else single
        return Tensor(np.ascontiguousarray(cut), self.based, shape)

    def permuted(self, order: Sequence[int]) -> Trial:
        """The same for the models in another order."""
        declared = [each for each in type(self.method).parameters() if each.per_model]
        moved = {each.field: tuple(getattr(self.method, each.field)[i] for i in order) for each in declared}
        return replace(self, method=replace(self.method, **moved))  # type: ignore[type-var]


Law = Callable[[Trial], Iterator[str]]


def _trial(method: type[Method], seed: int, values: Settings) -> Trial:
    """Valid parameters: the defaults first, then random ones."""
    needs, random = method.needs, np.random.default_rng(seed)
    most = max(needs.least, min(needs.most or needs.least + 2, needs.least + 2))
    models = most - seed % (most - needs.least + 1)
    based = needs.base == "required" or (needs.base == "optional" and seed % 2 == 0)
    texts = [each.name for each in method.parameters() if each.required and each.kind == "str" and not each.choices]
    unknown = sorted(set(texts) - values.keys())
    if unknown:
        raise LawError(method.name, [f"It has valid parameters: give `values` for the text `{unknown[0]}`"])
    mistakes: list[str] = []
    for _ in range(100):
        drawn = {each.field: _setting(each, models, random, seed == 0, values) for each in method.parameters()}
        found = method(**drawn)
        mistakes = list(found.mistakes())
        if not mistakes:
            return Trial(found, models, based, seed)
    raise LawError(method.name, [f"It has valid parameters: none in a hundred tries ({mistakes[0]}); give `values`"])


def _setting(declared: Parameter, models: int, random: np.random.Generator, neutral: bool, values: Settings) -> Any:
    def value() -> Any:
        if declared.name in values:
            return values[declared.name]
        return declared.default if neutral and not declared.required else _drawn(declared, random)

    return tuple(value() for _ in range(models)) if declared.per_model else value()


def _drawn(declared: Parameter, random: np.random.Generator) -> Any:
    """A random value; numbers lie within their bounds, or are as weights are."""
    if declared.kind == "bool":
        return bool(random.random() < 0.5)
    if declared.kind == "str":
        words = [*declared.choices, *([] if declared.required else [declared.default])]
        return words[random.integers(len(words))]
    low, high = declared.low, declared.high
    if low is None:
        low = -0.3 if high is None else high - 2
    if high is None:
        high = low + 2
    if declared.kind == "float":
        return float(random.uniform(low, high))
    return int(random.integers(math.ceil(low), math.floor(high) + 1))


@dataclass(frozen=True, slots=True)
class Tensor:
    """Operands of one tensor, merged as the engine does it: sweeps over stripes, then stripe by stripe."""

    rows: Entries
    based: bool
    shape: tuple[int, ...]

    def permuted(self, order: Sequence[int]) -> Tensor:
        """The models in another order."""
        first = int(self.based)
        return replace(self, rows=np.concatenate([self.rows[:first], self.rows[first:][list(order)]]))

    def copies(self) -> Tensor:
        """The first operand in the place of each."""
        return replace(self, rows=np.repeat(self.rows[:1], len(self.rows), axis=0))

    def merged(self, method: Method, way: Way = "fuse", stripe: int | None = None, workers: int = 1) -> Entries:
        """The result, float32, flat.

        Parameters:
            method: how.
            way: `Method.fuse`; or `Method.merge` on NumPy arrays or on torch tensors.
            stripe: grains at a time; None for the whole tensor.
            workers: into how many spans sweeps are divided.
        """
        target = Target(_NAME, self.shape, method.grain(self.shape), seed=7)
        spans = self._spans(target, stripe, workers)
        stats: dict[str, object] = {}
        for reduction in method.reductions():
            search = reduction.begin(target, lambda: [self._block(target, way, 0, target.count)], stats)
            for _ in range(_SWEEPS):
                if search.done:
                    break
                scratches = [search.scratch() for _ in spans]
                for scratch, own in zip(scratches, spans, strict=True):
                    for start, stop in (part for ends in own for part in search.wanted(*ends)):
                        search.visit(self._block(target, way, start, stop), scratch)
                search.close(scratches)
            else:
                raise RuntimeError(f"the reduction `{reduction.name}` does not end")
            stats[reduction.name] = search.result()
        parts = [
            _merged(method, self._block(target, way, start, stop), stats, way) for own in spans for start, stop in own
        ]
        return np.concatenate([np.empty(0, "<f4"), *parts])

    def _spans(self, target: Target, stripe: int | None, workers: int) -> list[list[tuple[int, int]]]:
        step = target.grain * (stripe or max(1, target.count))
        cuts = [(start, min(start + step, target.count)) for start in range(0, target.count, step)]
        share = max(1, -(-len(cuts) // workers))
        return [cuts[start : start + share] for start in range(0, len(cuts), share)]

    def _block(self, target: Target, way: Way, start: int, stop: int) -> Block:
        from mergekit.kernels import arrays, fused

        rows = np.ascontiguousarray(self.rows[:, start:stop])
        if way == "fuse":
            return Block(rows, self.based, start, fused, target)
        wide = rows.copy() if rows.dtype == "<f4" else (rows.astype("<u4") << 16).view("<f4")
        if way == "torch":
            import torch

            return Block(torch.from_numpy(wide), self.based, start, arrays, target)
        return Block(wide, self.based, start, arrays, target)


def _merged(method: Method, block: Block, stats: Stats, way: Way) -> Entries:
    from mergekit.kernels.arrays import host

    count = block.rows.shape[1]
    if way == "fuse":
        out = np.full(count, np.nan, "<f4")
        method.fuse(block, stats, out)
        return out
    before = host(block.rows).copy()
    found = host(method.merge(block, stats))
    if found.dtype != np.float32 or found.shape != (count,):
        raise TypeError(f"it returned {found.dtype} of shape {found.shape}, and not float32 of shape ({count},)")
    if not np.array_equal(before, host(block.rows), equal_nan=True):
        raise ValueError("it changed the operands that it was given")
    return found


def _ways() -> list[Way]:
    return ["fuse", "numpy", "torch"] if find_spec("torch") else ["fuse", "numpy"]


def _far(found: Entries, expected: Entries) -> float | None:
    """By how much two results differ, as a share of the greatest entry, if that is too much."""
    distances = np.abs(found - expected)
    limit = _NEAR * float(np.abs(expected).max(initial=0))
    beyond = ~(distances <= limit)  # where there is no number as well
    return float(distances.max() / (limit / _NEAR or 1)) if beyond.mean() > _STRAY else None


def _numbers(trial: Trial) -> Iterator[str]:
    """The result is float32, finite, and of the shape of one model."""
    for dtype in ("<f4", "<u2"):
        tensor = trial.tensor(dtype=dtype)
        for operands, what in ((tensor, ""), (tensor.copies(), ", if all models and the base are equal")):
            for way in _ways():
                merged = operands.merged(trial.method, way)
                broken = np.count_nonzero(~np.isfinite(merged))
                if broken:
                    yield f"{broken} of {merged.size} entries are infinite or not a number{what}"


def _shapes(trial: Trial) -> Iterator[str]:
    """Tensors of any shape are merged."""
    for shape in _SHAPES:
        for way in _ways():
            merged = trial.tensor(shape).merged(trial.method, way)
            if not np.isfinite(merged).all():
                yield f"the result of shape {shape} is infinite or not a number"


def _repeats(trial: Trial) -> Iterator[str]:
    """The same comes out every time."""
    tensor = trial.tensor()
    if tensor.merged(trial.method).tobytes() != tensor.merged(trial.method).tobytes():
        yield "a second run gave other bytes; `block.noise` is noise that can be repeated"


def _stripes(trial: Trial) -> Iterator[str]:
    """The same bytes come out whatever the size of the blocks and the number of workers."""
    for dtype in ("<f4", "<u2"):
        tensor = trial.tensor(dtype=dtype)
        for way in _ways():
            whole = tensor.merged(trial.method, way)
            for stripe, workers in _CUTS:
                cut = tensor.merged(trial.method, way, stripe, workers)
                if cut.tobytes() != whole.tobytes():
                    places = np.count_nonzero(cut != whole)
                    yield f"{places} of {whole.size} entries differ if it sees {stripe} grains at a time"


def _twins(trial: Trial) -> Iterator[str]:
    """`fuse`, and `merge` on NumPy arrays and on torch tensors, agree."""
    for dtype in ("<f4", "<u2"):
        tensor = trial.tensor(dtype=dtype)
        expected = tensor.merged(trial.method, "numpy")
        for way in _ways():
            far = _far(tensor.merged(trial.method, way), expected)
            if far is not None:
                yield f"{way} is {far:.1e} of the greatest entry away from numpy"


def _order(trial: Trial) -> Iterator[str]:
    """The order of the models is of no account (or else `order_matters=True`)."""
    tensor, order = trial.tensor(), range(trial.models)[::-1]
    far = _far(tensor.permuted(order).merged(trial.permuted(order).method), tensor.merged(trial.method))
    if far is not None:
        yield f"reversed, the result is {far:.1e} of the greatest entry away"


def _copies(trial: Trial) -> Iterator[str]:
    """With the defaults, copies of one model give that model (or else `keeps_copies=False`)."""
    if trial.seed:
        return
    copies = trial.tensor().copies()
    far = _far(copies.merged(trial.method), copies.rows[0])
    if far is not None:
        yield f"the result is {far:.1e} of the greatest entry away"


_LAWS: tuple[Law, ...] = (_numbers, _shapes, _repeats, _stripes, _twins, _order, _copies)
