"""Tiny Llama-like checkpoints, and ways to run commands."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from mergekit.cli.main import commands

WIDTH, INNER, LAYERS, ROWS = 16, 24, 2, 32
ROOT = Path(__file__).parents[2]


def _layer(index):
    prefix = f"model.layers.{index}."
    yield from ((f"{prefix}self_attn.{name}_proj.weight", (WIDTH, WIDTH)) for name in "qkvo")
    yield from ((f"{prefix}mlp.{name}_proj.weight", (INNER, WIDTH)) for name in ("gate", "up"))
    yield f"{prefix}mlp.down_proj.weight", (WIDTH, INNER)
    yield from ((f"{prefix}{name}_layernorm.weight", (WIDTH,)) for name in ("input", "post_attention"))


def _shapes(rows):
    yield "model.embed_tokens.weight", (rows, WIDTH)
    for index in range(LAYERS):
        yield from _layer(index)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (rows, WIDTH)


def write_model(folder, seed, rows=ROWS):
    """A checkpoint of normally distributed numbers."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed).standard_normal
    tensors = {name: draw(shape, np.float32) for name, shape in _shapes(rows)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text("{}")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with the models a, b and c; c has fewer tokens."""
    root = tmp_path_factory.mktemp("models")
    write_model(root / "a", 1)
    write_model(root / "b", 2)
    write_model(root / "c", 3, ROWS - 4)
    return root


@dataclass(frozen=True)
class Bench:
    """A folder to work in, with the recipe `merge.yml`."""

    folder: Path
    models: Path

    @property
    def recipe(self):
        return self.folder / "merge.yml"

    @property
    def out(self):
        return self.folder / "out"

    def write(self, first="a", second="b", extra=""):
        entries = "".join(
            f"- {{model: {self.models / name}, parameters: {{weight: 0.5}}}}\n" for name in (first, second)
        )
        self.recipe.write_text(f"merge_method: linear\nmodels:\n{entries}{extra}")

    def run(self, *flags, **settings):
        """`mergekit yaml FLAGS merge.yml out`."""
        return CliRunner().invoke(commands, ["yaml", *map(str, flags), str(self.recipe), str(self.out)], **settings)


def _bench(folder, models):
    bench = Bench(folder, models)
    bench.write()
    return bench


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, models):
    """The first merge on a machine has more to say than later ones."""
    assert _bench(tmp_path_factory.mktemp("first"), models).run().exit_code == 0


@pytest.fixture
def bench(tmp_path, models, compiled):
    """A folder to work in, on a machine where kernels have been compiled."""
    return _bench(tmp_path, models)


def spawn(*words, **settings):
    """Run Python in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100", "NO_COLOR": "1"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, words)], env=environment, **{**pipes, **settings})


@pytest.fixture
def python():
    """Run Python to its end: exit code, stdout, stderr."""

    def run(*words, **settings):
        process = spawn(*words, **settings)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return run


@pytest.fixture
def start():
    """Start Python; it is gone after the test."""
    started = []

    def run(*words, **settings):
        started.append(spawn(*words, **settings))
        return started[-1]

    yield run
    for process in started:
        with process:
            process.kill()
