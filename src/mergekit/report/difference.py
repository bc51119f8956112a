"""How far two models are from each other, tensor by tensor.

With the entries a of a tensor of the first model and b of the second, over a tensor or over all tensors of a cell:

- relative distance: ``‖b − a‖ / ‖a‖``;
- symmetric distance: ``2 ‖b − a‖ / (‖a‖ + ‖b‖)``, between 0 and 2, the same the other way round;
- cosine: ``a · b / (‖a‖ ‖b‖)``;
- changed: the share of entries that are not equal.

Entries that are infinite or not a number in either model are left out and counted as broken. Sums are taken in float64
over fixed grains and then added up exactly, so that results do not depend on threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Files
from mergekit.checkpoint.hub import Hub
from mergekit.errors import CheckpointError, Findings, IncompatibleModelsError, Problem
from mergekit.kernels import GRAIN, RAW
from mergekit.layout import Part
from mergekit.methods.reductions import exact_sums
from mergekit.plan.models import Key, Model, open_models
from mergekit.plan.views import StoredView, View
from mergekit.recipe import Parameters, Recipe, Source, reference
from mergekit.report.parts import part_of
from mergekit.report.rooms import Room

Raw = NDArray[Any]

_CHUNK = 64 * GRAIN  # entries of both models that a thread holds at a time; they stay in its cache
_HUGE = 1e130  # entries beyond have squares that cannot be added up


@final
@dataclass(frozen=True, slots=True)
class Distance:
    """Sums over entries of two models, and what follows from them.

    Parameters:
        entries: how many there are.
        changed: how many are not equal.
        broken: how many are left out, as they are no finite numbers in one of the models.
        first, second: squared norms of the two.
        apart: squared norm of their difference.
        product: their dot product.
    """

    entries: int = 0
    changed: int = 0
    broken: int = 0
    first: float = 0.0
    second: float = 0.0
    apart: float = 0.0
    product: float = 0.0

    @classmethod
    def total(cls, parts: Iterable[Distance]) -> Distance:
        """Over all entries of the parts, exactly rounded."""
        known = list(parts)
        counts = (sum(getattr(part, name) for part in known) for name in ("entries", "changed", "broken"))
        sums = (math.fsum(getattr(part, name) for part in known) for name in ("first", "second", "apart", "product"))
        return cls(*counts, *sums)

    @property
    def relative(self) -> float | None:
        """``‖b − a‖ / ‖a‖``; None if only the second model has something there."""
        return _ratio(math.sqrt(self.apart), math.sqrt(self.first))

    @property
    def symmetric(self) -> float:
        """``2 ‖b − a‖ / (‖a‖ + ‖b‖)``."""
        return _ratio(2 * math.sqrt(self.apart), math.sqrt(self.first) + math.sqrt(self.second)) or 0.0

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between both; None if one of them is zero."""
        if not (self.first and self.second):
            return None
        if self.apart == 0:
            return 1.0
        return max(-1.0, min(1.0, self.product / (math.sqrt(self.first) * math.sqrt(self.second))))

    @property
    def share(self) -> float:
        """Share of the entries that changed."""
        return self.changed / self.entries if self.entries else 0.0


def _ratio(number: float, divisor: float) -> float | None:
    if number == 0:
        return 0.0
    return number / divisor if divisor else None


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that both models have.

    Parameters:
        name: in the first model.
        other: in the second.
        place: in the layout.
        part: what it is for.
        shape: the same in both.
        dtypes: in the first model and in the second.
        distance: between both.
    """

    name: str
    other: str
    place: Part
    part: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    distance: Distance


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two models.

    Parameters:
        first, second: the models, as the user named them.
        tensors: the tensors that could be compared, in the order of the first model.
        only_first, only_second: names of tensors that the other model has not.
        unlike: names of tensors that cannot be compared, with the reason.
    """

    first: str
    second: str
    tensors: tuple[TensorDifference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    unlike: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A tensor to be compared."""

    key: Key
    first: View
    second: View

    @property
    def refusal(self) -> str | None:
        """Why it cannot be compared."""
        one, other = self.first.spec, self.second.spec
        if one.shape != other.shape:
            return f"shapes {list(one.shape)} and {list(other.shape)}"
        packed = {view.spec.dtype.title for view in (self.first, self.second) if not _is_number(view)}
        return f"{' and '.join(sorted(packed))} cannot be compared" if packed else None


def _is_number(view: View) -> bool:
    """Whether entries can be read as numbers; packed codes need scales that a stored tensor does not have."""
    dtype = view.spec.dtype
    whole = np.dtype(dtype.storage).name == dtype.title and dtype.kind != "complex"
    return not isinstance(view, StoredView) or dtype.name in RAW or whole


def compare_models(
    first: str,
    second: str,
    *,
    workers: int | None = None,
    hub: Hub | None = None,
    planned: Callable[[int, Sequence[Problem]], None] = lambda _nbytes, _warnings: None,
    advance: Callable[[int], None] = lambda _nbytes: None,
) -> Difference:
    """Compare the weights of two models, in bounded memory on all cores.

    Parameters:
        first: the model that the other is compared with, as recipes name models.
        second: the other.
        workers: threads, by default one per core.
        hub: how models are taken from the hub; they are downloaded.
        planned: called with the bytes that will be read and with warnings, before a weight is read.
        advance: called from any thread with bytes that were read.

    Raises:
        CheckpointError: a model cannot be read.
        UnsupportedError: a model is quantised in a way that is not read.
        IncompatibleModelsError: no tensor can be compared.
    """
    findings = Findings()
    models = _opened((first, second), findings, hub)
    a, b = models[0], models[-1]
    pairs = [_Pair(key, view, b.views[key]) for key, view in a.views.items() if key in b.views]
    unlike = {a.own_name(pair.key): why for pair in pairs if (why := pair.refusal)}
    pairs = [pair for pair in pairs if pair.refusal is None]
    if not pairs:
        listing = next((f"; `{name}` has {why}" for name, why in unlike.items()), "")
        raise IncompatibleModelsError(
            f"the models have no tensor in common that could be compared{listing}", place=f"{first} and {second}"
        )
    planned(sum(pair.first.nbytes + pair.second.nbytes for pair in pairs), findings.warnings)
    distances = _distances(pairs, workers or os.cpu_count() or 1, advance)
    return Difference(
        first=first,
        second=second,
        tensors=tuple(_described(a, b, pair, found) for pair, found in zip(pairs, distances, strict=True)),
        only_first=tuple(a.own_name(key) for key in a.views if key not in b.views),
        only_second=tuple(b.own_name(key) for key in b.views if key not in a.views),
        unlike=unlike,
    )


def _opened(names: Sequence[str], findings: Findings, hub: Hub | None) -> tuple[Model, ...]:
    """The models, opened as those of a recipe are: one of them if both names mean the same."""
    nothing = Parameters({}, "")
    sources = [Source(reference(name), None, nothing, f"models[{index}]") for index, name in enumerate(names)]
    recipe = Recipe("linear", None, tuple(sources), (), (), nothing, None, None, None, None, "", None, {})
    models = open_models(recipe, findings, hub=hub)
    for problem in findings.errors:
        raise CheckpointError(problem.what, expected=problem.expected, hint=problem.hint)
    return models


def _described(a: Model, b: Model, pair: _Pair, distance: Distance) -> TensorDifference:
    place = a.part(pair.key)
    assert place is not None, "every tensor has a place"
    dtypes = (pair.first.spec.dtype.title, pair.second.spec.dtype.title)
    names = a.own_name(pair.key), b.own_name(pair.key)
    return TensorDifference(*names, place, part_of(place), pair.first.spec.shape, dtypes, distance)


def _distances(pairs: Sequence[_Pair], workers: int, advance: Callable[[int], None]) -> Iterator[Distance]:
    """One for each pair, in their order: threads share chunks, so that large tensors do not wait for one of them."""
    chunks = [
        (index, start, min(start + _CHUNK, pair.first.spec.count))
        for index, pair in enumerate(pairs)
        for start in range(0, max(1, pair.first.spec.count), _CHUNK)
    ]
    with Files() as files, ThreadPoolExecutor(workers) as pool:
        room = Room(files)

        def measured(chunk: tuple[int, int, int]) -> tuple[int, Raw, Raw]:
            index, start, stop = chunk
            pair = pairs[index]
            room.turn_to(index)
            found = _measure(pair, room, start, stop)
            size, count = pair.first.nbytes + pair.second.nbytes, max(1, pair.first.spec.count)
            advance(size * stop // count - size * start // count)  # so that all chunks add up to the size
            return index, *found

        for index, group in groupby(pool.map(measured, chunks), key=lambda found: found[0]):
            parts = list(group)
            counts = np.sum([part[1] for part in parts], axis=0)
            yield Distance(pairs[index].first.spec.count, *map(int, counts), *exact_sums([part[2] for part in parts]))


def _measure(pair: _Pair, room: Room, start: int, stop: int) -> tuple[Raw, Raw]:
    """Changed and broken entries of a stretch, and its sums per grain: columns as in :class:`Distance`."""
    if not (_exact(pair.first) or _exact(pair.second)):
        formats = {pair.first.row_format, pair.second.row_format}
        dtype = np.dtype(RAW[formats.pop() if len(formats) == 1 else "F32"])
        rows = room.buffer("rows", 2 * (stop - start) * dtype.itemsize).view(dtype).reshape(2, stop - start)
        for row, view in zip(rows, (pair.first, pair.second), strict=True):
            view.read(room, start, stop, row)
        counts, sums = _fast(rows)
        if np.isfinite(sums).all():
            return counts, sums
    wide = [_wide(view, room, start, stop) for view in (pair.first, pair.second)]
    counts, careful = _careful(*wide)
    if _exact(pair.first) or _exact(pair.second):
        return counts, careful
    finite = np.isfinite(sums).all(axis=1, keepdims=True)  # decided per grain, so that chunks do not matter
    return counts, np.where(finite, sums, careful)


def _exact(view: View) -> bool:
    """Whether kernels would round or misread the entries: float64 and integers."""
    return isinstance(view, StoredView) and view.spec.dtype.name not in RAW


def _fast(rows: Raw) -> tuple[Raw, Raw]:
    from mergekit.kernels import fused

    grains = -(-rows.shape[1] // GRAIN)
    dots, deltas, counts = np.empty((grains, 2, 2)), np.empty((grains, 1, 1)), np.empty((1, 2))
    fused.gram(rows[0, :0], rows, GRAIN, dots)
    fused.gram(rows[0], rows[1:], GRAIN, deltas)
    fused.overlaps(rows[0], rows[1:], 0.0, counts)
    sums = np.stack([dots[:, 0, 0], dots[:, 1, 1], deltas[:, 0, 0], dots[:, 0, 1]], axis=1)
    return np.array([counts[0, 0], 0]), sums


def _wide(view: View, room: Room, start: int, stop: int) -> Raw:
    """The entries as float64."""
    if isinstance(view, StoredView) and view.spec.dtype.name not in RAW:
        dtype = np.dtype(view.spec.dtype.storage)
        octets = room.buffer("exact", (stop - start) * dtype.itemsize)
        view.read_bytes(room, start, stop, octets)
        return octets.view(dtype).astype(np.float64)
    row = room.buffer("wide", (stop - start) * 4).view(np.float32)
    view.read(room, start, stop, row)
    return row.astype(np.float64)


def _careful(a: Raw, b: Raw) -> tuple[Raw, Raw]:
    """The same on float64 entries, without those that are no finite numbers."""
    kept = (np.abs(a) < _HUGE) & (np.abs(b) < _HUGE)
    counts = np.array([np.count_nonzero(kept & (a != b)), np.count_nonzero(~kept)])
    a, b = np.where(kept, a, 0.0), np.where(kept, b, 0.0)
    edges = range(0, a.size, GRAIN)
    columns = [a * a, b * b, (b - a) ** 2, a * b]
    grains = [[column[start : start + GRAIN].sum() for column in columns] for start in edges]
    return counts, np.array(grains).reshape(len(edges), 4)
