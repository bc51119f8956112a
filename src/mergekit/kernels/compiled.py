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
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np

Kinds = tuple[str, ...]
"""How a kernel sees its arguments: arrays by dtype and rank (``<u2``, 2), numbers as ``int`` or ``float``."""

_LOCK = threading.RLock()
_KEPT: list[Any] = []  # engines and stubs: machine code must outlive its callers


@cache
def fingerprint() -> str:
    """Hash of the kernels' sources, the compiler and the processor: equal ones compute to the last bit alike."""
    import llvmlite
    import llvmlite.binding as llvm

    features = json.dumps(sorted(llvm.get_host_cpu_features().items()))
    digest = hashlib.sha256(f"{llvmlite.__version__} {llvm.get_host_cpu_name()} {features}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@cache
def cache_folder() -> Path:
    """The folder for machine code; the package's own folder may be read-only, and so may the home."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    user = os.getuid() if hasattr(os, "getuid") else "user"
    for root in (home / "mergekit", Path(tempfile.gettempdir()) / f"mergekit-{user}"):
        folder = root / f"kernels-{fingerprint()}"
        if _writable(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="mergekit-kernels-"))


def first_use() -> bool:
    """Whether no kernel has been compiled on this machine yet, so that the first merge takes seconds longer."""
    return next(cache_folder().glob("*.json"), None) is None


def _kind(argument: Any) -> str:
    if isinstance(argument, np.ndarray):
        return f"{argument.dtype.str}{argument.ndim}"
    return "float" if isinstance(argument, float | np.floating) else "int"


def _raw_arguments(arguments: Sequence[Any]) -> list[Any]:
    """Arguments as machine code takes them: arrays as address and shape."""
    raw: list[Any] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            if not argument.flags.c_contiguous:
                raise ValueError("kernels take contiguous arrays")
            raw += (argument.__array_interface__["data"][0], *argument.shape)
        else:
            raw.append(float(argument) if isinstance(argument, float | np.floating) else int(argument))
    return raw


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
        self._entries: dict[Kinds, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run on this thread, without the GIL."""
        kinds = tuple(map(_kind, arguments))
        entry = self._entries.get(kinds) or self._link(kinds)
        return entry(*_raw_arguments(arguments))

    def _link(self, kinds: Kinds) -> Callable[..., Any]:
        with _LOCK:
            if kinds not in self._entries:
                key = hashlib.sha256(repr(kinds).encode()).hexdigest()[:12]
                facts = cache_folder() / f"{self.module}.{self.name}-{key}.json"
                if not facts.exists():
                    from mergekit.kernels.compiling import compile_kernel

                    compile_kernel(self.module, self.name, kinds, facts)
                self._entries[kinds] = _linked(facts, kinds)
            return self._entries[kinds]


def _linked(facts: Path, kinds: Kinds) -> Callable[..., Any]:
    """Load object code into this process."""
    import llvmlite.binding as llvm

    known = json.loads(facts.read_text(encoding="utf-8"))
    _provide(known["externals"])
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(str(facts.with_suffix(".o")))
    engine.finalize_object()
    _KEPT.append(engine)
    types: list[Any] = []
    for kind in kinds:
        if kind in ("int", "float"):
            types.append(ctypes.c_int64 if kind == "int" else ctypes.c_double)
        else:
            types += [ctypes.c_void_p, *[ctypes.c_ssize_t] * int(kind[-1])]
    result = ctypes.c_int64 if known["returns"] else None
    return ctypes.CFUNCTYPE(result, *types)(engine.get_function_address(known["symbol"]))


def _provide(externals: Sequence[str]) -> None:
    """Give an address to what the object code names for errors, which kernels do not raise."""
    import llvmlite.binding as llvm

    for name in externals:
        if llvm.address_of_symbol(name) is None:
            stub = ctypes.CFUNCTYPE(None)(os.abort)
            _KEPT.append(stub)
            address = ctypes.cast(stub, ctypes.c_void_p).value
            assert address is not None
            llvm.add_symbol(name, address)
