"""The way to a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mergekit.errors import DeviceError


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The library, connected to a cluster; a connection that is there already stays.

    Parameters:
        address: "auto" for the cluster that this machine is part of, "HOST:PORT", or "local" for a new one of this
            machine alone, which ends with the connection.

    Raises:
        DeviceError: Ray is not installed, or there is no cluster.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise DeviceError("working on several machines needs Ray", hint="pip install 'mergekit[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    with _own_signals(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about versions of Ray to come
        own = _for_this_machine_alone() if address == "local" else {}
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            what = f"there is no Ray cluster at `{address}`: {' '.join(str(error).split())}"
            hint = "`ray start --head` on one machine first; `--ray local` tries it on this machine alone"
            raise DeviceError(what, hint=hint) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _for_this_machine_alone() -> dict[str, Any]:
    """Settings of a cluster that nothing outside of this machine can see, and that tells nobody of itself."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}


@contextmanager
def _own_signals() -> Iterator[None]:
    """What happens when this process is told to stop is not for Ray to change."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
