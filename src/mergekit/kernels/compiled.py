"""How kernels are compiled, and where the machine code is kept between processes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_F = TypeVar("_F", bound=Callable[..., Any])


def _fingerprint() -> str:
    """Changes with any kernel source and with numba: a stale binary is never loaded."""
    digest = hashlib.sha256(str(numba.__version__).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _choose_cache_folder() -> Path:
    """A folder for machine code; the package's own folder may be read-only, and so may the home."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    user = os.getuid() if hasattr(os, "getuid") else "user"
    for root in (home / "mergekit", Path(tempfile.gettempdir()) / f"mergekit-{user}"):
        folder = root / f"kernels-{_fingerprint()}"
        if _writable(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="mergekit-kernels-"))


CACHE_FOLDER = _choose_cache_folder()
setattr(numba.config, "CACHE_DIR", str(CACHE_FOLDER))  # noqa: B010  (typed as an empty module)


def first_use() -> bool:
    """Whether no kernel has been compiled on this machine yet, so that the first merge takes seconds longer."""
    return next(CACHE_FOLDER.rglob("*.nbi"), None) is None


def kernel(function: _F) -> _F:
    """Compile a function that Python calls: without the GIL, kept on disk.

    Multiplications and additions may be fused; nothing else about floating point is relaxed.
    """
    return cast(_F, numba.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")(function))


def inner(function: _F) -> _F:
    """Compile a function that only kernels call: part of its caller's binary."""
    return cast(_F, numba.njit(nogil=True, fastmath={"contract"}, error_model="numpy")(function))


def inner_sum(function: _F) -> _F:
    """Compile a summation that only kernels call: the order of additions is the compiler's.

    The order depends on the machine's vector width, never on threads or stripes: callers sum fixed grains.
    """
    return cast(_F, numba.njit(nogil=True, fastmath={"contract", "reassoc"}, error_model="numpy")(function))
