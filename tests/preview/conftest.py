"""Hollow models: headers and configs as real ones have them, and no weights."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "merging"))

from tiny_checkpoints import llama_config, llama_shapes, write_hollow


@pytest.fixture
def hollow(tmp_path):
    """Make a hollow Llama: settings of its config, and the dtype of its tensors."""

    def make(name, dtype="BF16", **settings):
        config = llama_config(**settings)
        return write_hollow(tmp_path / name, llama_shapes(config), config, dtype)

    return make


@pytest.fixture
def models(hollow):
    """Two equal models."""
    return [hollow(name) for name in "ab"]


@pytest.fixture
def large(hollow):
    """Two equal models of 110 MB each."""
    return [hollow(name, width=512, inner=2048, layers=12, rows=8192) for name in "ab"]


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A folder on a file system of 50 MB; where none may be mounted, one that is said to be so small."""
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=50m", "none", folder]
    mounted = subprocess.run(line, capture_output=True, check=False)
    if mounted.returncode:
        from mergekit.checkpoint import writing
        from mergekit.preview import space

        def reserve(descriptor, nbytes):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(space, "free_bytes", lambda folder: 50 << 20)
        monkeypatch.setattr(writing, "_reserve", reserve)
    yield folder
    if not mounted.returncode:
        subprocess.run(["umount", folder], check=True)
