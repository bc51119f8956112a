"""The compiler: numba, imported when there is something to compile.

A kernel is a plain function on arrays in C order and numbers. It may not raise, and may not allocate: room for
intermediate results is in its frame (:func:`~mergekit.kernels.numbers.stack_array`). Functions that kernels call are
marked :func:`inner`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar, cast

import numba
from numba.core import types
from numba.extending import intrinsic

_F = TypeVar("_F", bound=Callable[..., Any])

_OPTIONS: Mapping[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
_ENTRIES = {
    "<u2": types.uint16,
    "<i2": types.int16,
    "<f4": types.float32,
    "<f8": types.float64,
    "|u1": types.uint8,
    "<u4": types.uint32,
    "<i4": types.int32,
    "<i8": types.int64,
}


def inner(function: _F) -> _F:
    """Mark a function that only kernels call: part of its caller's code.

    Multiplications and additions may be fused; nothing else about floating point is relaxed.
    """
    return cast(_F, numba.njit(**_OPTIONS)(function))


def inner_sum(function: _F) -> _F:
    """Mark a summation that only kernels call: the order of additions is the compiler's.

    The order depends on the machine's vector width, never on threads or stripes: callers sum fixed grains.
    """
    return cast(_F, numba.njit(fastmath={"contract", "reassoc"}, error_model="numpy")(function))


def compile_kernel(module: str, name: str, kinds: tuple[str, ...]) -> tuple[dict[str, Any], bytes]:
    """Compile a kernel for arguments of these kinds.

    Parameters:
        module: where the function is, below :mod:`mergekit.kernels`.
        name: the function's name.
        kinds: see :data:`mergekit.kernels.compiled.Kinds`.

    Returns:
        What is known about the code (see :data:`mergekit.kernels.compiled.Facts`), and an object file.
    """
    function = getattr(import_module(f"mergekit.kernels.{module}"), name)
    body = numba.njit(**_OPTIONS)(function)
    arguments = tuple(_numba_type(kind) for kind in kinds)
    body.compile(arguments)
    returns = body.overloads[arguments].signature.return_type is not types.none
    raw = (types.float64 if kind == "float" else types.int64 for kind in kinds)
    signature = (types.int64 if returns else types.void)(*raw)
    entry: Any = numba.cfunc(signature, **_OPTIONS)(_entry_function(body, kinds))
    code: bytes = entry._library._get_compiled_object()
    externals = set(re.findall(r'declare [^@]*@"?([\w.$]+)"?\(', str(entry._library._final_module)))
    facts = {
        "symbol": entry._wrapper_name,
        "returns": returns,
        "externals": sorted(name for name in externals if not name.startswith("llvm.")),
        "sha256": hashlib.sha256(code).hexdigest(),
    }
    return facts, code


def _numba_type(kind: str) -> Any:
    if kind in ("int", "float"):
        return types.int64 if kind == "int" else types.float64
    return types.Array(_ENTRIES[kind[:-1]], int(kind[-1]), "C")


def _entry_function(body: Any, kinds: tuple[str, ...]) -> Callable[..., Any]:
    """A function with one number per parameter, for arrays the address of their record, that calls the kernel."""
    names = [f"a{place}" for place in range(len(kinds))]
    scope: dict[str, Any] = {"body": body}
    calls = list(names)
    for place, kind in enumerate(kinds):
        if kind not in ("int", "float"):
            scope[f"array{place}"] = _array_at(_numba_type(kind))
            calls[place] = f"array{place}(a{place})"
    exec(f"def entry({', '.join(names)}):\n    return body({', '.join(calls)})", scope)
    return cast(Callable[..., Any], scope["entry"])


def _array_at(array: Any) -> Any:
    """A function that finds an array of this type by the address of NumPy's record of it.

    The record is the struct `PyArrayObject_fields` of NumPy's C interface, with which every extension module is
    compiled: behind the head that all objects have, the data's address, the rank, and the address of the shape.
    """

    def typed(_context: Any, _address: Any) -> Any:
        def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            from llvmlite import ir

            def field(offset: int, kind: Any) -> Any:
                place = builder.add(arguments[0], ir.Constant(ir.IntType(64), object.__basicsize__ + offset))
                return builder.load(builder.inttoptr(place, kind.as_pointer()))

            entry, extent = context.get_data_type(array.dtype), ir.IntType(64)
            extents = field(16, extent.as_pointer())
            shape = [builder.load(builder.gep(extents, [extent(axis)])) for axis in range(array.ndim)]
            return _made_array(context, builder, array, field(0, entry.as_pointer()), shape)

        return array(types.intp), emit

    return intrinsic(typed)


def _made_array(context: Any, builder: Any, array: Any, data: Any, shape: list[Any]) -> Any:
    """An array in C order."""
    from numba.np import arrayobj

    make_array: Any = arrayobj.make_array
    populate: Any = arrayobj.populate_array
    held = make_array(array)(context, builder)
    itemsize = context.get_constant(types.intp, array.dtype.bitwidth // 8)
    strides = [itemsize]
    for extent in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], extent))
    populate(held, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
    return held._getvalue()
