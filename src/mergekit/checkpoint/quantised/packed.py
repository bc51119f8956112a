"""Whole numbers of a few bits in words of 32 bits, as compressed-tensors packs them."""

from __future__ import annotations

from mergekit.checkpoint.quantised.codes import Codes, Quantised, Steps
from mergekit.checkpoint.quantised.factors import Factors, PackedZeros, PlainFactors
from mergekit.checkpoint.quantised.numbers import whole_numbers
from mergekit.checkpoint.quantised.parts import Parts, grid_of
from mergekit.checkpoint.reading import read_tensor
from mergekit.checkpoint.tensors import Stored
from mergekit.errors import UnsupportedError

_WORD = 32
_BITS = (4, 8, 2, 1)  # others straddle words in some versions of the library and not in others


def packed_integers(parts: Parts) -> Quantised:
    """``_packed``, ``_scale`` and ``_shape``, and perhaps ``_zero_point``.

    Raises:
        UnsupportedError: the numbers have another width, or columns are grouped in an order of their own.
        CheckpointError: the parts do not fit together.
    """
    if "_g_idx" in parts.stored:
        raise UnsupportedError(
            f"`{parts.name}` is quantised with its columns in an order of their own (`actorder: group`)",
            place=str(parts.codes.extent.file),
            hint="the unquantised checkpoint of the same model",
        )
    rows, columns = shape = _shape(parts)
    bits = _bits(parts, rows, columns)
    scales = parts.factors("_scale")
    grid = grid_of(parts, shape, scales)
    words = -(-columns * bits // _WORD)
    return Quantised(
        spec=parts.spec(shape),
        names=parts.names,
        nbytes=parts.nbytes,
        matrix=shape,
        codes=Codes(parts.codes.extent, bits, Steps(0, words * _WORD, bits), whole_numbers(bits)),
        grid=grid,
        scales=PlainFactors(scales),
        zeros=_zeros(parts, bits, rows, scales),
    )


def _shape(parts: Parts) -> tuple[int, int]:
    stored = parts.check_shape("_shape", (2,))
    if stored.spec.dtype.name not in ("I64", "I32"):
        raise parts.wrong(stored, "rows and columns as int64")
    rows, columns = (int(size) for size in read_tensor(stored))
    own = parts.codes.spec.shape
    if len(own) != 2 or rows != own[0] or columns < 1:
        raise parts.wrong(parts.codes, f"words of a weight of shape {[rows, columns]}")
    return rows, columns


def _bits(parts: Parts, rows: int, columns: int) -> int:
    """The width of a number: told by config.json where it names one, else by the number of words."""
    words = parts.codes.spec.shape[1]
    fitting = [bits for bits in _BITS if -(-columns * bits // _WORD) == words]
    told = parts.settings.bits
    if chosen := [bits for bits in fitting if bits in told] or ([] if told else fitting):
        return chosen[0]
    if odd := sorted(told - set(_BITS)):
        raise UnsupportedError(
            f"`{parts.name}` is quantised to {odd[0]} bits, and this version cannot read such weights",
            place=str(parts.codes.extent.file),
            expected="4 or 8 bits",
            hint="the unquantised checkpoint of the same model",
        )
    raise parts.wrong(parts.codes, f"words of a weight of shape {[rows, columns]}")


def _zeros(parts: Parts, bits: int, rows: int, scales: Stored) -> Factors | None:
    stored = parts.stored.get("_zero_point")
    if stored is None:
        return None
    own = scales.spec.shape
    width = own[-1] if len(own) == 2 else 1
    if stored.spec.dtype.name == "I8" and stored.spec.shape == own:
        return PlainFactors(stored)
    if stored.spec.dtype.name == "I32" and len(own) == 2 and own[0] == rows:
        parts.check_shape("_zero_point", (-(-rows * bits // _WORD), width))
        return PackedZeros(stored, bits, width)
    raise parts.wrong(stored, f"zero points of scales of shape {list(own)}")
