"""How many threads NumPy's linear algebra takes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Within the block every call takes the thread that makes it and no other; only of OpenBLAS, as in NumPy's wheels.

    Threads over modules that each start threads of their own wait for one another: small matrices take forty times as
    long. And results do not depend on the number of cores.
    """
    controls = _controls()
    if controls is None:
        yield
        return
    ask, tell = controls
    before = ask()
    tell(1)
    try:
        yield
    finally:
        tell(before)


def _controls() -> tuple[Any, Any] | None:
    """The functions that return and set the number of threads; None for another library."""
    root = Path(np.__file__).parent
    for folder in (root.with_name("numpy.libs"), root / ".dylibs"):
        for file in sorted(folder.glob("lib*openblas*")):
            with suppress(OSError):
                library = ctypes.CDLL(str(file))
                for name in _NAMES:
                    if hasattr(library, name.format("set")) and hasattr(library, name.format("get")):
                        return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None
