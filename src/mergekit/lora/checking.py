"""The proof of an adapter: applied to its base, it gives the fine-tune as nearly as its report says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mergekit.adapters import Base, Change, match_adapter, open_adapter
from mergekit.checkpoint import Files, TensorSpec
from mergekit.errors import VerificationError
from mergekit.lora.folder import rounded
from mergekit.lora.measuring import Finding
from mergekit.lora.pairs import Pair, Pairs
from mergekit.plan.views import View, adapted
from mergekit.report.rooms import Room

_CHUNK = 1 << 20  # entries that are compared at a time
_NARROW, _WIDE = 2.0**-7, 2.0**-19  # rounding of factors, as a share of the difference, with margin
_SUM = 2.0**-21  # rounding of sums in float32, as a share of the weight


@dataclass(frozen=True, slots=True)
class _Error:
    """Squared norms of what a restored tensor is off, and of the tensor; entries, and those that are the same."""

    missed: float
    norm: float
    entries: int
    same: int


def check_adapter(
    pairs: Pairs, findings: Sequence[Finding], folder: Path, advance: Callable[[int], None]
) -> dict[str, object]:
    """Apply a written adapter to its base, compare that with the fine-tune, and say how far they are apart.

    Nothing is written: the weights are computed as a merge would compute them, stretch by stretch.

    Parameters:
        pairs: both models.
        findings: what the adapter is said to hold of each module.
        folder: of the adapter.
        advance: told of bytes that were read.

    Raises:
        VerificationError: a module is farther from the fine-tune than is said.
    """
    tall = {pair.base.spec.name: pair for pair in pairs.tensors}
    specs = {view.spec.name: view.spec for view in pairs.base.views.values()}
    specs |= {name: TensorSpec(name, specs[name].dtype, pair.shape) for name, pair in tall.items() if name in specs}
    fitting = match_adapter(open_adapter(folder), Base(folder, pairs.base.checkpoint.config, specs))
    narrow = any(product.a.spec.dtype.bits < 32 for found in findings for product in found.products)
    errors = []
    with Files() as files:
        room = Room(files)
        for number, found in enumerate(findings):
            room.turn_to(number)
            for pair in (found.unit.weight, found.unit.bias):
                if pair is not None:
                    errors.append(_compare(pair, fitting.changes, room))
                    advance(pair.nbytes)
            _refuse(found, errors[-1 if found.unit.bias is None else -2], narrow)
    missed, norm = math.fsum(one.missed for one in errors), math.fsum(found.norm for found in findings)
    return {
        "relative_error": math.sqrt(missed / norm) if norm else 0.0,
        "same_entries": sum(one.same for one in errors) / max(1, sum(one.entries for one in errors)),
    }


def _compare(pair: Pair, changes: Mapping[str, Sequence[Change]], room: Room) -> _Error:
    """The base with the adapter against the fine-tune, without rows that only the latter has: those are copies."""
    own = changes.get(pair.base.spec.name, ())
    view: View = adapted(pair.base, own) if own else pair.base
    count, dtype = min(pair.base.spec.count, pair.tuned.spec.count), pair.tuned.spec.dtype
    missed, norm, same = 0.0, 0.0, 0
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        restored, wanted = np.empty(stop - start, np.float32), np.empty(stop - start, np.float32)
        view.read(room, start, stop, restored)
        pair.tuned.read(room, start, stop, wanted)
        missed += float(np.square(restored - wanted, dtype=np.float64).sum())
        norm += float(np.square(wanted, dtype=np.float64).sum())
        if dtype.bits < 32:
            restored, wanted = rounded(restored, dtype), rounded(wanted, dtype)
        same += int(np.count_nonzero(restored == wanted))
    return _Error(missed, norm, count, same)


def _refuse(found: Finding, error: _Error, narrow: bool) -> None:
    said, met = math.sqrt(max(0.0, found.missed)), math.sqrt(error.missed)
    rounding = (_NARROW if narrow else _WIDE) * math.sqrt(found.norm) + _SUM * math.sqrt(error.norm)
    if not met <= 1.01 * said + rounding:
        raise VerificationError(
            f"`{found.unit.weight.name}` with the adapter is {met:.3g} from the fine-tune",
            expected=f"at most {said:.3g}, as the report says, and rounding",
        )
