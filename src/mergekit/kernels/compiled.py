"""How processes use kernels without a compiler.

The first call of a kernel with arrays of new types compiles it with numba, for this machine, and keeps the object code
in a file (:mod:`~mergekit.kernels.compiling`). Every later process links that file into itself through llvmlite, in
milliseconds: importing numba and warming it up would take half a second, as long as merging a small model.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

Kinds = tuple[str, ...]
"""How a kernel sees its arguments: arrays by dtype and rank (``<u2``, 2), numbers as ``int`` or ``float``."""

SUFFIX = ".kernel"
"""Of files with machine code: a line of JSON about it, then an object file."""

Facts = dict[str, Any]
"""What is known about machine code: its symbol, whether it returns a number, external symbols, its hash."""

_FLOATS = (float, np.floating)
_LOCK = threading.RLock()
_KEPT: list[Any] = []  # engines and stubs: machine code must outlive its callers


@cache
def fingerprint() -> str:
    """Hash of the kernels' sources, the compiler and the processor: equal ones compute to the last bit alike."""
    import llvmlite
    import llvmlite.binding as llvm

    features = json.dumps(sorted(llvm.get_host_cpu_features().items()))
    machine = f"{llvmlite.__version__} {llvm.get_host_cpu_name()} {features} {object.__basicsize__}"
    digest = hashlib.sha256(machine.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _private(folder: Path) -> bool:
    """Whether a folder can be had that nobody else may put machine code into."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError:
        return False
    ours = not hasattr(os, "getuid") or (state.st_uid == os.getuid() and not state.st_mode & 0o022)
    return ours and stat.S_ISDIR(state.st_mode) and os.access(folder, os.W_OK | os.X_OK)


@cache
def cache_folder() -> Path:
    """The folder for machine code; the package's own folder may be read-only, and so may the home."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    user = os.getuid() if hasattr(os, "getuid") else "user"
    choices = (home / "mergekit" / "kernels", Path(tempfile.gettempdir()) / f"mergekit-{user}-kernels")
    chosen = next((folder for folder in choices if _private(folder)), None)
    return chosen or Path(tempfile.mkdtemp(prefix="mergekit-kernels-"))


def first_use() -> bool:
    """Whether no kernel has been compiled on this machine yet, so that the first merge takes seconds longer."""
    return next(cache_folder().glob(f"*-{fingerprint()}{SUFFIX}"), None) is None


def _kind(argument: Any) -> str:
    if isinstance(argument, np.ndarray):
        return f"{argument.dtype.str}{argument.ndim}"
    return "float" if isinstance(argument, _FLOATS) else "int"


def _address(array: NDArray[Any]) -> int:
    """Where the array's own record is: its data and its shape are read from there by machine code."""
    if not array.flags.c_contiguous:
        raise ValueError("kernels take contiguous arrays")
    return id(array)


@final
class Kernel:
    """A compiled loop, called like the function it is made of, on arrays in C order.

    Parameters:
        module: where the function is, below :mod:`mergekit.kernels`; imported only to compile it.
        name: the function's name.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self._entries: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run on this thread, without the GIL."""
        seen: list[Any] = []  # a cheaper form of the kinds: this is where Python's time goes, and it holds the GIL
        raw: list[Any] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                seen += (argument.dtype, argument.ndim)
                raw.append(_address(argument))
            elif isinstance(argument, _FLOATS):
                seen.append(float)
                raw.append(float(argument))
            else:
                seen.append(int)
                raw.append(int(argument))
        key = tuple(seen)
        entry = self._entries.get(key) or self._link(key, tuple(map(_kind, arguments)))
        return entry(*raw)

    def _link(self, seen: tuple[Any, ...], kinds: Kinds) -> Callable[..., Any]:
        with _LOCK:
            if seen not in self._entries:
                key = hashlib.sha256(repr(kinds).encode()).hexdigest()[:12]
                file = cache_folder() / f"{self.module}.{self.name}-{key}-{fingerprint()}{SUFFIX}"
                found = _contents(file)
                if found is None:
                    from mergekit.kernels.compiling import compile_kernel

                    found = compile_kernel(self.module, self.name, kinds)
                    _replace(file, json.dumps(found[0]).encode() + b"\n" + found[1])
                self._entries[seen] = _linked(*found, kinds)
            return self._entries[seen]


def _contents(file: Path) -> tuple[Facts, bytes] | None:
    """What a file holds; None if it is not there, or damaged."""
    try:
        head, _, code = file.read_bytes().partition(b"\n")
        facts: Facts = json.loads(head)
    except (OSError, ValueError):
        return None
    return (facts, code) if facts["sha256"] == hashlib.sha256(code).hexdigest() else None


def _replace(file: Path, contents: bytes) -> None:
    """Write a file so that other processes see all of it or nothing."""
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_bytes(contents)
    partial.replace(file)


def _linked(facts: Facts, code: bytes, kinds: Kinds) -> Callable[..., Any]:
    """Link object code into this process."""
    import llvmlite.binding as llvm

    _provide(facts["externals"])
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(facts["symbol"])
    assert address, "object code holds the symbol it was kept under"
    _KEPT.append(engine)
    types = [ctypes.c_double if kind == "float" else ctypes.c_int64 for kind in kinds]
    result = ctypes.c_int64 if facts["returns"] else None
    return ctypes.CFUNCTYPE(result, *types)(address)


def _provide(externals: Sequence[str]) -> None:
    """Give an address to what the object code names for errors, which kernels do not raise."""
    import llvmlite.binding as llvm

    process = ctypes.CDLL(None)
    for name in externals:
        if llvm.address_of_symbol(name) is None and not hasattr(process, name):
            stub = ctypes.CFUNCTYPE(None)(os.abort)
            _KEPT.append(stub)
            address = ctypes.cast(stub, ctypes.c_void_p).value
            assert address is not None
            llvm.add_symbol(name, address)
