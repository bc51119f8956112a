"""Floats of 4 and 8 bits and whole numbers of 8 bits, with scales."""

from __future__ import annotations

from mergekit.checkpoint.quantised.codes import Codes, Grid, Quantised, Steps
from mergekit.checkpoint.quantised.factors import PlainFactors
from mergekit.checkpoint.quantised.numbers import FP4, table_of
from mergekit.checkpoint.quantised.parts import Parts, grid_of, row_major

_ZEROS = "_zero_point"
_GROUP = 32  # entries of a microscaling block


def unscaled(parts: Parts) -> Quantised:
    """Floats of 8 bits as they are."""
    spec = parts.codes.spec
    rows, columns = row_major(spec.shape)
    return Quantised(
        spec=parts.spec(spec.shape),
        names=parts.names,
        nbytes=parts.nbytes,
        matrix=(rows, columns),
        codes=_bytes(parts, rows, columns),
        grid=Grid(max(rows, 1), max(columns, 1), Steps(0, 0, 0)),
    )


def scaled(parts: Parts) -> Quantised:
    """Floats or whole numbers of 8 bits times scales, which are never divided by, whatever their name says.

    Raises:
        CheckpointError: the scales do not fit the weight.
    """
    shape = parts.codes.spec.shape
    scales = parts.factors(next(ending for ending in ("_scale_inv", "_scale") if ending in parts.stored))
    rows, columns = row_major(shape)
    zeros = None
    if _ZEROS in parts.stored:
        stored = parts.check_shape(_ZEROS, scales.spec.shape)
        if stored.spec.dtype != parts.codes.spec.dtype:
            raise parts.wrong(stored, parts.codes.spec.dtype.title)
        zeros = PlainFactors(stored)
    return Quantised(
        spec=parts.spec(shape),
        names=parts.names,
        nbytes=parts.nbytes,
        matrix=(rows, columns),
        codes=_bytes(parts, rows, columns),
        grid=grid_of(parts, shape, scales),
        scales=PlainFactors(scales),
        zeros=zeros,
    )


def _bytes(parts: Parts, rows: int, columns: int) -> Codes:
    steps = Steps(rows * columns * 8, columns * 8, 8)
    return Codes(parts.codes.extent, 8, steps, table_of(parts.codes.spec.dtype.name))


def microscaled(parts: Parts) -> Quantised:
    """Floats of 4 bits whose blocks of 32 share a power of two, as in GPT-OSS: ``_blocks`` and ``_scales``.

    Experts are stored as (expert, output, block, byte) and used as (expert, input, output).

    Raises:
        CheckpointError: the blocks or their scales have another shape.
    """
    own = parts.codes.spec.shape
    if len(own) != 4 or own[3] * 2 != _GROUP:
        raise parts.wrong(parts.codes, f"shape [experts, outputs, blocks, {_GROUP // 2}]")
    scales = parts.check_shape("_scales", own[:3])
    if scales.spec.dtype.name not in ("U8", "F8_E8M0"):
        raise parts.wrong(scales, "uint8")
    experts, outputs, blocks, _ = own
    inputs = blocks * _GROUP
    return Quantised(
        spec=parts.spec((experts, inputs, outputs)),
        names=parts.names,
        nbytes=parts.nbytes,
        matrix=(inputs, outputs),
        codes=Codes(parts.codes.extent, 4, Steps(outputs * inputs * 4, 4, inputs * 4), FP4),
        grid=Grid(_GROUP, 1, Steps(outputs * blocks, 1, blocks)),
        scales=PlainFactors(scales),
    )
