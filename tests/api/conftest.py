"""Tiny models, made by the module that the tests of whole merges use."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "merging"))

import torch
from tiny_checkpoints import fine_tuned, llama_config, llama_shapes, random_tensors, write_model


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with base, a, b and c in bfloat16, and a buffer of integers."""
    root = tmp_path_factory.mktemp("models")
    config = llama_config(layers=2, dtype=torch.bfloat16)
    base = random_tensors(llama_shapes(config), 0, torch.bfloat16) | {"model.positions": torch.arange(7)}
    write_model(root / "base", base, config)
    for seed, name in enumerate("abc", start=1):
        write_model(root / name, fine_tuned(base, seed), config)
    return root


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing is written where tests are started."""
    monkeypatch.chdir(tmp_path)
