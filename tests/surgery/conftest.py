"""Tiny models are those of the merges' tests, tiny tokenizers those of the tokenizers' tests."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("merging", "tokenizer")]

from surgery_samples import make_pair  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def modest_transformers():
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A model and a donor with about two thirds of their words in common; never changed."""
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def make(tmp_path):
    """Makes pairs with other settings."""
    return lambda **settings: make_pair(tmp_path, **settings)
