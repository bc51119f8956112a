"""The hub of Hugging Face: names instead of folders, downloads, and reading without downloading.

Needs the extra ``mergekit[hub]``; the library behind it is loaded when a model is not a folder.
"""

from mergekit.checkpoint.hub.client import Reference
from mergekit.checkpoint.hub.fetching import Hub, Snapshot, fetch, is_local
from mergekit.checkpoint.hub.opening import local_folder, open_model
from mergekit.checkpoint.hub.remote import Remote
from mergekit.checkpoint.hub.streaming import ROOM, RemoteFiles
from mergekit.checkpoint.hub.uploading import Destination, upload

__all__ = [
    "ROOM",
    "Destination",
    "Hub",
    "Reference",
    "Remote",
    "RemoteFiles",
    "Snapshot",
    "fetch",
    "is_local",
    "local_folder",
    "open_model",
    "upload",
]
