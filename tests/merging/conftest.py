"""Tiny models of many families, made once for all tests; the references are those of the methods' tests."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("merging", "methods", "tokenizer")]

from tiny_families import FAMILIES, make_family  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def modest_transformers():
    """No progress bars, and one thread: on a busy machine tiny products wait for each other."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Family:
    """A folder with the models base, a, b and c."""

    name: str
    root: Path

    def __truediv__(self, model):
        return self.root / model


@pytest.fixture(scope="session")
def families(tmp_path_factory, modest_transformers):
    """Make a family, once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = Family(name, make_family(name, tmp_path_factory.mktemp(name)))
        return made[name]

    return make


@pytest.fixture(params=FAMILIES)
def family(request, families):
    """Every family in turn."""
    return families(request.param)
