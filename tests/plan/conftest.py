"""Hollow models: headers and configs as real ones have them, and no weights, which planning never reads."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "merging"))

from tiny_checkpoints import llama_config, llama_shapes, write_hollow


@pytest.fixture(scope="session")
def llamas(tmp_path_factory):
    """A folder with the equal models base, a, b and c of 4 layers, with heads of their own."""
    root = tmp_path_factory.mktemp("llamas")
    config = llama_config()
    for name in ("base", "a", "b", "c"):
        write_hollow(root / name, llama_shapes(config), config)
    return root


@pytest.fixture
def hollow(tmp_path):
    """Make a hollow Llama: settings of its config, and what is special about its tensors."""

    def make(name, without=(), extra=None, dtype="BF16", **settings):
        config = llama_config(**settings)
        shapes = {key: shape for key, shape in llama_shapes(config).items() if key not in without}
        return write_hollow(tmp_path / name, {**shapes, **(extra or {})}, config, dtype)

    return make
