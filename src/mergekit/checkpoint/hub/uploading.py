"""A model folder becomes a repository of the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mergekit.checkpoint.hub.client import explained, is_offline, library, persist
from mergekit.checkpoint.hub.fetching import bars
from mergekit.errors import CheckpointError, OutputError


@dataclass(frozen=True, slots=True)
class Destination:
    """A repository to upload to.

    Parameters:
        path: ``owner/name``, or ``name`` for one of your own.
        revision: a branch, which is made if there is none; None for the main one.
        private: only you may see it, if it has to be made.
        message: of the commit.
    """

    path: str
    revision: str | None = None
    private: bool = False
    message: str = "Upload a merge made with mergekit"


def upload(folder: Path, destination: Destination, drawing: bool = False) -> str:
    """Upload a folder; what the repository has already is not sent again, so that a second call resumes the first.

    Parameters:
        folder: all of it is uploaded.
        destination: the repository, which is made if there is none.
        drawing: draw bars on stderr.

    Returns:
        The address of what was uploaded.

    Raises:
        OutputError: the hub refuses or cannot be reached, or the repository is public and should be private.
    """
    try:
        if is_offline():
            what = "nothing can be uploaded: HF_HUB_OFFLINE forbids to ask the hub"
            raise OutputError(what, hint="unsetting HF_HUB_OFFLINE")
        with explained(destination), bars(drawing):
            return _upload(folder, destination)
    except CheckpointError as error:
        problem = error.problem
        raise OutputError(problem.what, place=problem.place, expected=problem.expected, hint=problem.hint) from error


def _upload(folder: Path, destination: Destination) -> str:
    hub = library().HfApi()
    made = persist(lambda: hub.create_repo(destination.path, private=destination.private, exist_ok=True))
    name: str = made.repo_id
    if destination.private and persist(lambda: hub.model_info(name)).private is False:
        hint = "another name, or making the repository private on the hub first"
        raise CheckpointError(f"{name} is there already, and it is public", hint=hint)
    if destination.revision not in (None, "main"):
        persist(lambda: hub.create_branch(name, branch=destination.revision, exist_ok=True))
    persist(
        lambda: hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=destination.revision,
            commit_message=destination.message,
        )
    )
    address = f"{library().constants.ENDPOINT}/{name}"
    return address if destination.revision in (None, "main") else f"{address}/tree/{destination.revision}"
