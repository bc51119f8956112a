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
    signature = (types.int64 if returns else types.void)(*_raw_types(kinds))
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


def _raw_types(kinds: tuple[str, ...]) -> list[Any]:
    raw: list[Any] = []
    for kind in kinds:
        if kind in ("int", "float"):
            raw.append(_numba_type(kind))
        else:
            raw += [_pointer(_ENTRIES[kind[:-1]]), *[types.intp] * int(kind[-1])]
    return raw


def _pointer(entry: Any) -> Any:
    return types.CPointer(entry)  # type: ignore[no-untyped-call]


def _entry_function(body: Any, kinds: tuple[str, ...]) -> Callable[..., Any]:
    """A function with one parameter per address, extent or number that calls the kernel with arrays."""
    names: list[str] = []
    calls: list[str] = []
    for place, kind in enumerate(kinds):
        if kind in ("int", "float"):
            names.append(f"a{place}")
            calls.append(f"a{place}")
        else:
            extents = [f"a{place}_{axis}" for axis in range(int(kind[-1]))]
            names += [f"a{place}", *extents]
            calls.append(f"carray(a{place}, ({', '.join(extents)},))")
    scope: dict[str, Any] = {"body": body, "carray": vars(numba)["carray"]}
    exec(f"def entry({', '.join(names)}):\n    return body({', '.join(calls)})", scope)
    return cast(Callable[..., Any], scope["entry"])
