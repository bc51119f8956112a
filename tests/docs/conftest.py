"""A folder like the top of the repository."""

import shutil

import pytest
from pages import ROOT


@pytest.fixture
def here(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("adapters"))
    (tmp_path / "examples" / "adapters").symlink_to(ROOT / "examples" / "adapters")
    return tmp_path
