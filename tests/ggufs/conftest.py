"""Tiny GGUF files, written by the library `gguf` from tiny models of transformers."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "merging")]

from gguf_files import ARCHITECTURES, make_model, write_gguf  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def modest_transformers():
    """No progress bars, and one thread: on a busy machine tiny products wait for each other."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def originals(modest_transformers):
    """Make the model of an architecture, once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = make_model(name)
        return made[name]

    return make


@pytest.fixture(scope="session")
def llama(originals, tmp_path_factory):
    """A Llama in float32 as a GGUF file."""
    return write_gguf(tmp_path_factory.mktemp("llama") / "model.gguf", "llama", originals("llama"))


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    """Every architecture in turn."""
    return request.param
