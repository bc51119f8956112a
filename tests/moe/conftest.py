"""Tiny dense models, made once for all tests, and a cache of hidden states that is not the user's."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from moe_models import make_model, write_tokenizer


@pytest.fixture(scope="session", autouse=True)
def modest_transformers():
    """No progress bars, and one thread: on a busy machine tiny products wait for each other."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where hidden states of prompts are kept."""
    monkeypatch.setenv("MERGEKIT_GATE_CACHE", str(tmp_path / "gates"))
    return tmp_path / "gates"


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    """Make a model of a kind, once for each seed and setting."""
    made = {}

    def make(kind, seed=0, **more):
        key = (kind, seed, *map(str, sorted(more.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{kind}-{seed}")
            make_model(folder, kind, seed, **more)
            write_tokenizer(folder)
            made[key] = folder
        return made[key]

    return make
