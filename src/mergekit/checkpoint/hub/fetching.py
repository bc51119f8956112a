"""A repository of the hub as a folder: from the cache if that has all of it, else what is needed is downloaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit.checkpoint.finding import SAFETENSORS, find_weights, is_plain, read_object
from mergekit.checkpoint.hub.choosing import ADAPTER, small_files, weight_files
from mergekit.checkpoint.hub.client import Reference, explained, is_busy, is_offline, library, persist, status_of
from mergekit.errors import CheckpointError, MissingModelError

_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MARKS = ".mergekit"  # folder beside the snapshots: an empty file for each that holds all that was wanted of it
_AT_ONCE = 4  # files that are downloaded at a time
_TIMEOUT = 10.0  # seconds
_READ_EARLY = ("bitsandbytes", "compressed-tensors")  # kinds of quantised weights of which parts are read for the plan


@dataclass(frozen=True, slots=True)
class Hub:
    """How models are taken from the hub.

    Parameters:
        cache: where downloads are kept; that of huggingface_hub if None.
        stream: leave safetensors on the hub, and read of them what is needed when it is needed.
        bars: draw bars on stderr while downloading.
        known: folders that stand for references, whatever is there or on the hub by now.
    """

    cache: Path | None = None
    stream: bool = False
    bars: bool = False
    known: Mapping[str, Path] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where downloads are kept."""
        return (self.cache or Path(library().constants.HF_HUB_CACHE)).expanduser()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model or adapter as a local folder.

    Parameters:
        root: the folder.
        remarks: what the user should know about where it comes from.
        remote: weight files that are not there and are to be read from the hub, by name; their addresses.
    """

    root: Path
    remarks: tuple[str, ...] = ()
    remote: Mapping[str, str] | None = None


def is_local(reference: Reference) -> bool:
    """Whether a reference can only be a folder."""
    path = Path(reference.path).expanduser()
    return path.exists() or _NAME.fullmatch(reference.path) is None


def fetch(reference: Reference, hub: Hub, adapter: bool = False) -> Snapshot:
    """Find a repository in the cache, or download what a merge needs of it.

    A commit is never asked for again once all of it is there; what a branch or tag stands for is asked once, and if
    the hub cannot be reached, the cache decides.

    Parameters:
        reference: a repository of the hub.
        hub: how to.
        adapter: it is wanted as an adapter: nothing else of it is fetched.

    Raises:
        MissingModelError: there is no such repository or revision, or the cache does not have it and the hub may not
            be asked.
        CheckpointError: the hub refuses, cannot be reached, or the disk is full.
    """
    repository = _Repository(reference, hub, adapter)
    if is_offline():
        return repository.cached()
    if repository.is_settled():
        return Snapshot(repository.kept)
    try:
        with explained(reference):
            information = repository.ask()
    except CheckpointError as error:
        cause = error.__cause__ or error
        answered = status_of(cause) is not None and not is_busy(cause)
        if answered or isinstance(error, MissingModelError):
            raise
        if repository.lacks():
            what = f"there is no such folder, and {error.problem.what}"
            raise MissingModelError(what, hint=error.problem.hint) from error
        what = f"{error.problem.what}; the snapshot {repository.kept.name[:12]} in the cache is used"
        return Snapshot(repository.kept, (what,))
    with explained(reference), bars(hub.bars):
        return repository.complete(information)


@dataclass(frozen=True, slots=True)
class _Repository:
    reference: Reference
    hub: Hub
    adapter: bool

    @property
    def revision(self) -> str:
        return self.reference.revision or "main"

    @property
    def storage(self) -> Path:
        """Its folder in the cache."""
        return self.hub.folder / f"models--{self.reference.path.replace('/', '--')}"

    @property
    def kept(self) -> Path:
        """The snapshot in the cache that the revision stands for, which need not be there."""
        ref = self.storage / "refs" / self.revision
        commit = self.revision
        if not _COMMIT.fullmatch(commit):
            commit = ref.read_text("utf-8").strip() if is_plain(self.revision) and ref.is_file() else "none"
        return self.storage / "snapshots" / commit

    def lacks(self) -> str | None:
        """What the snapshot in the cache lacks to be merged; None if it is whole."""
        if not self.kept.is_dir():
            return "not there at all"
        if self.adapter:
            whole = (self.kept / ADAPTER).is_file() and any(self.kept.glob("adapter_model.*"))
            return None if whole else "without an adapter"
        packed = any(self.kept.glob("*.gguf"))
        if not packed and not (self.kept / "config.json").is_file():
            return "without config.json"
        try:
            if not packed:
                find_weights(self.kept, [])
        except CheckpointError as error:
            return f"not complete ({error.problem.what})"
        return None

    def cached(self) -> Snapshot:
        """The snapshot in the cache, which is all there is offline."""
        lack = self.lacks()
        if lack is None:
            return Snapshot(self.kept)
        what = f"{self.reference.path} is neither a folder nor in the cache: its revision {self.revision} is {lack}"
        hint = "unsetting HF_HUB_OFFLINE, which forbids to ask the hub"
        raise MissingModelError(what, place=str(self.hub.folder), hint=hint)

    def is_settled(self) -> bool:
        """Whether a commit was asked for, all of which has been downloaded before."""
        mark = self.storage / _MARKS / self._mark(self.revision)
        return _COMMIT.fullmatch(self.revision) is not None and mark.is_file() and self.lacks() is None

    def ask(self) -> Any:
        """What the hub says about the revision: commit, names and sizes of files."""
        hub, name = library().HfApi(), self.reference.path
        # Without a network the answer must come at once: the cache may do.
        return persist(
            lambda: hub.model_info(name, revision=self.revision, files_metadata=True, timeout=_TIMEOUT), is_busy
        )

    def complete(self, information: Any) -> Snapshot:
        """Download what the snapshot lacks."""
        sizes = {file.rfilename: file.size or 0 for file in information.siblings}
        root = self.storage / "snapshots" / information.sha
        small = small_files(sizes, self.adapter)
        self._download(small, root, sizes)
        root.mkdir(parents=True, exist_ok=True)
        weights = weight_files(sizes, root, self.adapter)
        absent = [name for name in weights if not (root / name).is_file()]
        wanted = self.hub.stream and bool(absent) and not self.adapter
        unfit = self._unfit(weights, root) if wanted else None
        if wanted and unfit is None:
            url = library().hf_hub_url
            addresses = {name: url(self.reference.path, name, revision=information.sha) for name in weights}
            return Snapshot(root, (), addresses)
        self._download(weights, root, sizes)
        self._settle(information.sha)
        return Snapshot(root, (f"downloaded, not streamed: {unfit}",) if unfit else ())

    def _unfit(self, weights: Sequence[str], root: Path) -> str | None:
        """Why weights cannot be read from the hub; None if they can."""
        if not all(name.endswith(SAFETENSORS.suffix) for name in weights):
            return "the weights are no safetensors"
        settings = read_object(root / "config.json").get("quantization_config")
        method = settings.get("quant_method") if isinstance(settings, Mapping) else None
        return f"the weights are quantised by {method}" if method in _READ_EARLY else None

    def _download(self, names: Sequence[str], root: Path, sizes: Mapping[str, int]) -> None:
        absent = [name for name in names if not (root / name).is_file()]
        self._refuse_full_disk(sum(sizes[name] for name in absent))

        def download(name: str) -> None:
            persist(
                lambda: library().hf_hub_download(
                    self.reference.path, name, revision=root.name, cache_dir=self.hub.folder
                )
            )

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            futures = [pool.submit(download, name) for name in absent]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _refuse_full_disk(self, wanted: int) -> None:
        folder = self.hub.folder
        while not folder.is_dir():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if wanted > free:
            what = f"no space to download {self.reference.path}: {wanted} bytes are needed, {free} are free"
            hint = "another folder for downloads, `--transformers-cache`, or `--stream`, which needs no room"
            raise CheckpointError(what, place=str(self.hub.folder), hint=hint)

    def _mark(self, commit: str) -> str:
        return f"{commit}-adapter" if self.adapter else commit

    def _settle(self, commit: str) -> None:
        """Note that all of a snapshot is there, and which one the branch or tag stands for; without these, it works."""
        with suppress(OSError):
            (self.storage / _MARKS).mkdir(exist_ok=True)
            (self.storage / _MARKS / self._mark(commit)).touch()
            ref = self.storage / "refs" / self.revision
            if not _COMMIT.fullmatch(self.revision) and is_plain(self.revision):
                ref.parent.mkdir(parents=True, exist_ok=True)
                fresh = ref.with_name(f"{ref.name}.{commit}")
                fresh.write_text(commit, "utf-8")
                fresh.replace(ref)


@contextmanager
def bars(wanted: bool) -> Iterator[None]:
    """Let the library draw, or not; what the user has said in HF_HUB_DISABLE_PROGRESS_BARS stands above this."""
    utils = library().utils
    silent = not wanted and not utils.are_progress_bars_disabled()
    if silent and library().constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if silent and library().constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            utils.enable_progress_bars()
