"""The library that speaks to the hub: loaded when it is needed, asked again after a hiccup, its errors explained.

Which HTTP library is below huggingface_hub depends on its version, so errors are told apart by the hub's own classes,
by their status, and by the module that they come from.
"""

from __future__ import annotations

import difflib
import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Protocol, TypeVar

from mergekit.errors import CheckpointError, MissingModelError

_T = TypeVar("_T")

_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before another try
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
_LOGIN = "`hf auth login`, or a token in the environment variable HF_TOKEN"


class Reference(Protocol):
    """Where one set of weights lives, as a recipe says: :class:`mergekit.recipe.Address` is one."""

    @property
    def path(self) -> str:
        """A folder, or the name of a repository on the hub."""

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit of the repository."""


def library() -> ModuleType:
    """The module huggingface_hub.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as error:
        what = "the hub cannot be asked: huggingface_hub is not installed"
        raise CheckpointError(what, hint="`pip install mergekit[hub]`") from error
    module: ModuleType = huggingface_hub
    return module


def is_offline() -> bool:
    """Whether the user has forbidden to ask the hub, by HF_HUB_OFFLINE."""
    return bool(library().constants.HF_HUB_OFFLINE)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error reports, if the server has answered at all."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _root(error: BaseException) -> BaseException:
    """What is behind an error by which the library says only which file it was busy with."""
    return error.__cause__ if type(error) is RuntimeError and error.__cause__ else error


def is_busy(error: BaseException) -> bool:
    """Whether the server has answered that it has no time now."""
    status = status_of(error)
    return status is not None and (status in (408, 429) or status >= 500)


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed: the connection broke, or the server is busy."""
    error = _root(error)
    if status_of(error) is not None:
        return is_busy(error)
    if isinstance(error, OSError):
        return error.errno not in _FATAL
    transport: str = library().utils.HfHubHTTPError.__mro__[1].__module__.partition(".")[0]
    return type(error).__module__.partition(".")[0] == transport


def persist(call: Callable[[], _T], worth: Callable[[BaseException], bool] = is_transient) -> _T:
    """Call until it succeeds, a few times, each after a longer pause.

    Parameters:
        call: what to do.
        worth: whether another try may succeed after an error.
    """
    for pause in _PAUSES:
        try:
            return call()
        except Exception as error:  # noqa: PERF203  (each try stands for itself)
            if not worth(error):
                raise
            time.sleep(pause)
    return call()


@contextmanager
def explained(reference: Reference) -> Iterator[None]:
    """Turn whatever the library raises about a repository into a :class:`CheckpointError` that says what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise _explanation(error, reference) from error


def _explanation(error: BaseException, reference: Reference) -> CheckpointError:
    """The error that says what to do; the order of the questions matters, since classes of the hub are nested."""
    error = _root(error)
    utils, status, name = library().utils, status_of(error), reference.path
    if isinstance(error, utils.OfflineModeIsEnabled):
        return MissingModelError(f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub")
    if isinstance(error, utils.HFValidationError):
        return MissingModelError(f"{name} is neither a folder nor a name that the hub knows: {error}")
    if isinstance(error, utils.GatedRepoError):
        page = f"{library().constants.ENDPOINT}/{name}"
        return CheckpointError(f"{name} is gated on the hub", hint=f"asking for access at {page}, then {_LOGIN}")
    if isinstance(error, utils.RepositoryNotFoundError):
        return _missing(name, status)
    if isinstance(error, utils.RevisionNotFoundError):
        return MissingModelError(
            f"{name} has no revision {reference.revision or 'main'}", expected="branch, tag, commit"
        )
    if status in (401, 403):
        return CheckpointError(f"the hub refuses access to {name} (status {status})", hint=_LOGIN)
    if status is not None:
        return CheckpointError(f"the hub cannot answer about {name} now (status {status})", hint="trying again later")
    if isinstance(error, OSError) and error.errno in _FATAL:
        hint = "another folder for downloads, `--transformers-cache`, or `--stream`, which needs no room"
        return CheckpointError(f"{name} cannot be kept: {error.strerror}", place=str(error.filename or ""), hint=hint)
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    hint = "checking the network, and the same again"
    return CheckpointError(f"the hub cannot be reached for {name}: {reason}", hint=hint)


def _missing(name: str, status: int | None) -> MissingModelError:
    """The hub does not say whether a repository is private or not there."""
    if status == 401 and not library().get_token():
        what = f"{name} is neither a folder nor a public repository of the hub"
        return MissingModelError(what, hint=_nearest(name) or f"if it is private: {_LOGIN}")
    what = f"{name} is neither a folder nor a repository of the hub that your token may see"
    if not library().get_token():
        what = f"{name} is neither a folder nor a repository of the hub"
    return MissingModelError(what, hint=_nearest(name))


def _nearest(name: str) -> str | None:
    """A repository whose name is nearly the same, if the hub finds one."""
    with suppress(Exception):  # this is about a good message only
        found = library().HfApi().list_models(search=name.rpartition("/")[2], limit=20)
        similar = difflib.get_close_matches(name, [model.id for model in found], 1)
        return f"`{similar[0]}`" if similar else None
    return None
