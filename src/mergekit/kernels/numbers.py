"""Storage formats inside kernels: how raw entries become float32 and go back, rounded to nearest even."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic, overload

u32 = numba.uint32
f32 = numba.float32

MAGNITUDE = np.uint32(0x7FFFFFFF)
"""All bits of a float32 but the sign: as an integer, it orders like the absolute value."""


def _same_bits(source: Any, target: Any) -> Any:
    """A function that sees the bits of a number of one type as one of another type of the same size."""

    def typed(_context: Any, number: Any) -> Any:
        del number

        def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), emit

    return intrinsic(typed)


as_float: Any = _same_bits(types.uint32, types.float32)
"""The float32 with these bits."""

as_bits: Any = _same_bits(types.float32, types.uint32)
"""The bits of this float32."""

as_double: Any = _same_bits(types.int64, types.float64)
"""The float64 with these bits."""

as_long: Any = _same_bits(types.float64, types.int64)
"""The bits of this float64."""


def _stack_array(_context: Any, size: Any, like: Any) -> Any:
    """An uninitialised array of a constant number of entries in this call's frame, with the entries' type of `like`.

    The compiler knows that nothing else points there, which lets it vectorise loops between it and the inputs.
    """
    if not isinstance(size, types.IntegerLiteral):
        return None
    array = types.Array(like.dtype, 1, "C")

    def emit(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        from llvmlite import ir
        from numba.core import cgutils
        from numba.np import arrayobj

        allocate: Any = cgutils.alloca_once
        make_array: Any = arrayobj.make_array
        populate: Any = arrayobj.populate_array
        entry = context.get_data_type(like.dtype)
        room = allocate(builder, ir.ArrayType(entry, size.literal_value))
        room.align = 64
        held = make_array(array)(context, builder)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(entry))
        populate(
            held,
            data=builder.bitcast(room, entry.as_pointer()),
            shape=[context.get_constant(types.intp, size.literal_value)],
            strides=[itemsize],
            itemsize=itemsize,
            meminfo=None,
        )
        return held._getvalue()

    return array(size, like), emit


stack_array: Any = intrinsic(prefer_literal=True)(_stack_array)


def load(raw: Any) -> Any:
    """A raw entry as float32."""
    raise NotImplementedError("only inside kernels")


def store(number: Any, like: Any) -> Any:
    """A float32, rounded to nearest even, as a raw entry of the type of `like`."""
    raise NotImplementedError("only inside kernels")


def _load_bf16(raw: Any) -> Any:
    return as_float(u32(raw) << u32(16))


def _load_f16(raw: Any) -> Any:
    bits = u32(raw) & u32(0xFFFF)
    magnitude = (bits & u32(0x7FFF)) << u32(13)
    # The exponent moves from bias 15 to bias 127 by a multiplication, which is exact for subnormals too.
    finite = as_bits(as_float(magnitude) * f32(2.0**112))
    special = magnitude | u32(0x7F800000)
    chosen = special if magnitude >= u32(0x0F800000) else finite
    return as_float(chosen | ((bits & u32(0x8000)) << u32(16)))


def _load_f32(raw: Any) -> Any:
    return raw


def _store_bf16(number: Any, like: Any) -> Any:  # noqa: ARG001
    bits = as_bits(number)
    odd = (bits >> u32(16)) & u32(1)
    rounded = (bits + u32(0x7FFF) + odd) >> u32(16)
    quiet = (bits >> u32(16)) | u32(0x40)  # a NaN whose payload sits in the lower half must stay a NaN
    return numba.uint16(quiet if (bits & u32(0x7FFFFFFF)) > u32(0x7F800000) else rounded)


def _store_f16(number: Any, like: Any) -> Any:  # noqa: ARG001
    bits = as_bits(number)
    magnitude = bits & u32(0x7FFFFFFF)
    odd = (magnitude >> u32(13)) & u32(1)
    normal = (magnitude - u32(112 << 23) + u32(0x0FFF) + odd) >> u32(13)
    # Adding 0.5 lines the subnormal mantissa up at the bottom, rounded by the addition itself.
    subnormal = as_bits(as_float(magnitude) + f32(0.5)) - u32(0x3F000000)
    special = u32(0x7E00) if magnitude > u32(0x7F800000) else u32(0x7C00)
    small = subnormal if magnitude < u32(113 << 23) else normal
    chosen = special if magnitude >= u32(143 << 23) else small
    return numba.int16(numba.uint16(chosen | ((bits >> u32(16)) & u32(0x8000))))


def _store_f32(number: Any, like: Any) -> Any:  # noqa: ARG001
    return f32(number)


_LOADS = {types.uint16: _load_bf16, types.int16: _load_f16, types.float32: _load_f32}
_STORES = {types.uint16: _store_bf16, types.int16: _store_f16, types.float32: _store_f32}


@overload(load)
def _overload_load(raw: Any) -> Any:
    return _LOADS.get(raw)


@overload(store)
def _overload_store(number: Any, like: Any) -> Any:  # noqa: ARG001
    return _STORES.get(like)
