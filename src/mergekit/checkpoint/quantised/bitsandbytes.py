"""The formats of bitsandbytes: tables of 16 numbers with blockwise factors, and whole numbers by rows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergekit.checkpoint.quantised.codes import Codes, Grid, Quantised, Steps
from mergekit.checkpoint.quantised.factors import Factors, NestedFactors, PlainFactors
from mergekit.checkpoint.quantised.numbers import table_of
from mergekit.checkpoint.quantised.parts import Parts
from mergekit.checkpoint.reading import read_tensor
from mergekit.checkpoint.tensors import Stored

_STATE = ".quant_state.bitsandbytes__"
_LONGEST = 1 << 16  # bytes of a state
_INVERSE = 7.874015718698502e-3  # 1/127, as the library writes it


@dataclass(frozen=True, slots=True)
class _State:
    """What the JSON beside a weight says."""

    shape: tuple[int, ...]
    blocksize: int
    nested_blocksize: int
    nested_offset: float


def four_bits(parts: Parts) -> Quantised:
    """NF4 and FP4, with factors that may be quantised themselves.

    Raises:
        CheckpointError: the parts do not fit together.
    """
    state = _state(parts)
    count = math.prod(state.shape)
    if parts.codes.spec.nbytes != -(-count // 2):
        raise parts.wrong(parts.codes, f"{-(-count // 2)} bytes for shape {list(state.shape)}")
    return Quantised(
        spec=parts.spec(state.shape),
        names=parts.names,
        nbytes=parts.nbytes,
        matrix=(1, count),
        codes=Codes(parts.codes.extent, 4, Steps(0, 0, 4), _table(parts, ".quant_map", 16), high_first=True),
        grid=Grid(1, state.blocksize, Steps(0, 0, 1)),
        scales=_factors(parts, state, -(-count // state.blocksize)),
    )


def _factors(parts: Parts, state: _State, blocks: int) -> Factors:
    stored = parts.check_shape(".absmax", (blocks,))
    if ".nested_absmax" not in parts.stored:
        return PlainFactors(_floats(parts, stored))
    outer = parts.check_shape(".nested_absmax", (-(-blocks // state.nested_blocksize),))
    if stored.spec.dtype.name != "U8" or ".nested_quant_map" not in parts.stored:
        raise parts.wrong(stored, "uint8 codes of a table `nested_quant_map`")
    table = _table(parts, ".nested_quant_map", 256)
    scales = PlainFactors(_floats(parts, outer))
    return NestedFactors(stored, table, scales, state.nested_blocksize, state.nested_offset)


def _floats(parts: Parts, stored: Stored) -> Stored:
    if stored.spec.dtype.name not in ("F32", "F16", "BF16"):
        raise parts.wrong(stored, "float32")
    return stored


def _table(parts: Parts, ending: str, size: int) -> bytes:
    stored = parts.check_shape(ending, (size,))
    if stored.spec.dtype.name != "F32":
        raise parts.wrong(stored, "float32")
    return read_tensor(stored).tobytes()


def _state(parts: Parts) -> _State:
    stored = next(stored for ending, stored in parts.stored.items() if ending.startswith(_STATE))
    if stored.spec.dtype.name != "U8" or stored.spec.nbytes > _LONGEST:
        raise parts.wrong(stored, "JSON as uint8")
    try:
        return _checked(json.loads(read_tensor(stored).tobytes().decode()))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise parts.wrong(stored, "JSON with shape and blocksize, and what belongs to nested factors") from error


def _checked(told: Any) -> _State:
    shape, sizes = tuple(told["shape"]), (told["blocksize"], told.get("nested_blocksize", 256))
    if not all(type(size) is int and 0 < size < 2**40 for size in (*shape, *sizes)):
        raise ValueError("sizes that are none")
    return _State(shape, sizes[0], sizes[1], float(np.float32(told.get("nested_offset", 0.0))))


def eight_bits(parts: Parts) -> Quantised:
    """Whole numbers of 8 bits, the largest magnitude of each row in ``SCB``.

    Raises:
        CheckpointError: the parts do not fit together, or the numbers are in an order made for some processor.
    """
    shape = parts.codes.spec.shape
    if len(shape) != 2:
        raise parts.wrong(parts.codes, "a matrix")
    rows, columns = shape
    scales = parts.check_shape(".SCB", (rows,))
    order = parts.stored.get(".weight_format")
    if order is not None and (order.spec.count != 1 or read_tensor(order).item() != 0):
        raise parts.wrong(order, "0, for rows one after the other")
    return Quantised(
        spec=parts.spec(shape),
        names=parts.names,
        nbytes=parts.nbytes,
        matrix=(rows, columns),
        codes=Codes(parts.codes.extent, 8, Steps(0, columns * 8, 8), table_of("I8")),
        grid=Grid(1, max(columns, 1), Steps(0, 1, 0)),
        scales=PlainFactors(_floats(parts, scales)),
        factor=float(np.float32(_INVERSE)),
    )
