"""Hold a written model against its parents: it is as far from them as its report says, and equals none of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Files, Stored
from mergekit.errors import CheckpointError, Problem
from mergekit.kernels import RAW
from mergekit.plan import Operand, Plan, TensorTask
from mergekit.plan.views import StoredView, View, view_of
from mergekit.report.claims import Claims
from mergekit.report.rooms import Room

Raw = NDArray[Any]
_T = TypeVar("_T")

SAMPLE = 16
"""Tensors that are compared if not all of them are."""

_STRIPE = 1 << 18  # entries
_ELSEWHERE = 1e-5  # relative difference that another machine may find: grains are summed in float32


@dataclass(frozen=True, slots=True)
class _Pair:
    """An output tensor as it was planned and as it lies there."""

    number: int
    task: TensorTask
    view: View


@final
class Parents:
    """The plan of a merge beside what came of it.

    Parameters:
        plan: made again from the recipe; its models are there.
        tensors: those that were written.
        files: where all are read from.
    """

    def __init__(self, plan: Plan, tensors: Mapping[str, Stored], files: Files) -> None:
        self._plan, self._room = plan, Room(files)
        found = ((task, tensors.get(task.out.name)) for task in plan.tasks)
        self._pairs = [
            _Pair(number, task, view_of(stored))
            for number, (task, stored) in enumerate(found)
            if stored is not None and (stored.spec.dtype, stored.spec.shape) == (task.out.dtype, task.out.shape)
        ]

    def wrong_distances(self, claims: Claims, full: bool) -> Iterator[Problem]:
        """Tensors that are not as far from their first source as the report says, or no copies where it says so.

        Parameters:
            claims: the report.
            full: look at all tensors, not only at some from all over the model.
        """
        chosen = [pair for pair in (self._pairs if full else self._sample()) if pair.task.out.name in claims.tensors]
        for pair, found in self._with_threads(chosen, self._distance):
            claim = claims.tensors[pair.task.out.name].distance
            if isinstance(found, Problem):
                yield found
            elif not _agree(found, claim):
                source, place = self._plan.models[_reference(pair.task).model].ref, _reference(pair.task).view.files[0]
                what = f"`{pair.task.out.name}` is {_share(found)} away from {source}, reported {_share(claim)}"
                if found == math.inf:
                    what = f"`{pair.task.out.name}` was copied from {source}, and differs from it"
                yield Problem(what, place, hint="whether that model has changed since")

    def the_same(self) -> Iterator[Problem]:
        """Models that the output equals in every tensor that was merged of several.

        Everything is read only if the output equals a model as far as one has looked.
        """
        several = [pair for pair in self._pairs if len(pair.task.operands) > 1 and not pair.task.identical]
        everywhere = [{operand.model for operand in pair.task.operands} for pair in several]
        sampled = {pair.number for pair in self._sample()}
        order = sorted(several, key=lambda pair: pair.number not in sampled)
        for index in sorted(set.intersection(*everywhere)) if everywhere else ():
            if all(equal is True for _, equal in self._with_threads(order, self._equals(index), at_once=SAMPLE)):
                what = f"the model equals {self._plan.models[index].ref} everywhere: the merge had no effect"
                yield Problem(what, hint="other weights, or other models")

    def _sample(self) -> list[_Pair]:
        step = max(1, len(self._pairs) // SAMPLE)
        return self._pairs[::step]

    def _with_threads(
        self, pairs: Sequence[_Pair], look: Callable[[_Pair], _T], at_once: int | None = None
    ) -> Iterator[tuple[_Pair, _T | Problem]]:
        def guarded(pair: _Pair) -> _T | Problem:
            self._room.turn_to(pair.number)
            try:
                return look(pair)
            except CheckpointError as error:
                return error.problem

        step = at_once or max(1, len(pairs))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            parts = (pairs[first : first + step] for first in range(0, len(pairs), step))
            yield from chain.from_iterable(zip(part, pool.map(guarded, part), strict=True) for part in parts)

    def _distance(self, pair: _Pair) -> float | None:
        """As the engine measures it: the output from its first operand, and a copy from what it is one of."""
        from mergekit.kernels.fused import measure

        if pair.task.copied is not None:
            return 0.0 if self._is_copy(pair, pair.task.copied) else math.inf
        squares = []
        grain = pair.task.target.grain
        for start, stop in _stripes(pair.view, grain):
            row = self._row("reference", pair.task.operands[0].view, start, stop, pair.task.row_format)
            sums = np.empty((-(-row.size // grain), 3))
            measure(self._out(pair, start, stop), row, grain, sums)
            squares.append(sums)
        apart, reference = (math.sqrt(math.fsum(chain(*(part[:, column] for part in squares)))) for column in (1, 2))
        return apart / reference if reference else None

    def _is_copy(self, pair: _Pair, operand: Operand) -> bool:
        return all(
            np.array_equal(self._bytes("out", pair.view, start, stop), self._bytes("copied", operand.view, start, stop))
            for start, stop in _stripes(pair.view)
        )

    def _equals(self, model: int) -> Callable[[_Pair], bool]:
        def look(pair: _Pair) -> bool:
            own = [operand.view for operand in pair.task.operands if operand.model == model]
            stripes = _stripes(pair.view)
            return all(
                np.array_equal(self._row("out", pair.view, *stripe), self._row("parent", view, *stripe))
                for stripe in stripes
                for view in own
            )

        return look

    def _out(self, pair: _Pair, start: int, stop: int) -> Raw:
        """Entries of the output, raw if kernels read them."""
        dtype = pair.task.out.dtype
        if dtype.name in RAW:
            return self._bytes("out", pair.view, start, stop).view(RAW[dtype.name])
        entries = self._bytes("out", pair.view, start, stop).view(dtype.storage)
        with np.errstate(over="ignore"):
            return entries.astype(np.float32)

    def _row(self, use: str, view: View, start: int, stop: int, form: str = "F32") -> Raw:
        dtype = np.dtype(RAW[form])
        row = self._room.buffer(use, (stop - start) * dtype.itemsize).view(dtype)
        view.read(self._room, start, stop, row)
        return row

    def _bytes(self, use: str, view: View, start: int, stop: int) -> Raw:
        assert isinstance(view, StoredView), "outputs and what is copied are stored as they are seen"
        octets = self._room.buffer(use, (stop - start) * view.spec.dtype.bits // 8)
        view.read_bytes(self._room, start, stop, octets)
        return octets


def _stripes(view: View, grain: int = 1) -> Iterator[tuple[int, int]]:
    step = grain * max(1, _STRIPE // grain)
    for start in range(0, view.spec.count, step):
        yield start, min(start + step, view.spec.count)


def _reference(task: TensorTask) -> Operand:
    return task.copied or task.operands[0]


def _agree(found: float | None, claim: float | None) -> bool:
    if found is None or claim is None:
        return claim is None and found in (None, 0.0)  # of whole numbers, which are copied, no distance is reported
    return math.isclose(found, claim, rel_tol=_ELSEWHERE)


def _share(distance: float | None) -> str:
    return "an unknown share" if distance is None else f"{distance:.6g} of the norm"
