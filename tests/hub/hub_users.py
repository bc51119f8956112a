"""Tiny models for a hub, and somebody who uses it."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from mergekit.checkpoint.hub import client
from mergekit.cli.main import commands

RESOLVE = "/{repo_id}/resolve/{revision}/{filename}"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
SHAPES = {"q_proj": (64, 64), "k_proj": (64, 64), "v_proj": (64, 64), "o_proj": (64, 64)}
MLP = {"gate_proj": (96, 64), "up_proj": (96, 64), "down_proj": (64, 96)}


def tensors(seed):
    """The tensors of a small Llama."""
    shapes = {"model.embed_tokens.weight": (256, 64), "model.norm.weight": (64,), "lm_head.weight": (256, 64)}
    for layer in range(2):
        head = f"model.layers.{layer}"
        shapes |= {f"{head}.self_attn.{name}.weight": shape for name, shape in SHAPES.items()}
        shapes |= {f"{head}.mlp.{name}.weight": shape for name, shape in MLP.items()}
        shapes |= {f"{head}.{name}.weight": (64,) for name in ("input_layernorm", "post_attention_layernorm")}
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def model_files(seed, sharded=False, times=1):
    """The files of a model: what a merge needs, and what it must leave where it is; matrices `times` as high."""
    weights = {name: value.repeat(times if value.ndim > 1 else 1, 0) for name, value in tensors(seed).items()}
    files = {
        "config.json": json.dumps(CONFIG, indent=2).encode(),
        "generation_config.json": b"{}",
        "tokenizer_config.json": json.dumps({"model_max_length": seed}).encode(),
        "chat_template.jinja": b"{{ messages }}",
        "merges.txt": b"a b\n",
        "README.md": b"---\nlicense: mit\n---\n",
        ".gitattributes": b"* text\n",
        "onnx/model.onnx": b"x" * 999,
        "original/consolidated.00.pth": b"x" * 999,
        "consolidated.safetensors": b"x" * 999,
        "pytorch_model.bin": b"x" * 999,
        "optimizer.pt": b"x" * 999,
    }
    if not sharded:
        return files | {"model.safetensors": save(weights, {"format": "pt"})}
    names = sorted(weights)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i * 9 : i * 9 + 9 + 99 * i] for i in range(2)}
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    files |= {shard: save({name: weights[name] for name in held}, {"format": "pt"}) for shard, held in shards.items()}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}


WANTED = {
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "merges.txt",
    "README.md",
    "model.safetensors",
}
"""What of a model in one file is downloaded."""


@dataclass
class Answer:
    """What a command has said."""

    returncode: int
    stdout: str
    stderr: str


class User:
    """Somebody with a home of their own, who runs commands against a hub."""

    def __init__(self, home, endpoint, monkeypatch):
        self.home, self.endpoint, self.monkeypatch = home, endpoint, monkeypatch
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        self.env |= {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
        }

    @property
    def cache(self):
        return self.home / "hf" / "hub"

    def snapshot(self, name, sha):
        return self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / sha

    def process(self, *arguments, **env):
        """Run Python in a process of its own, with what the environment says."""
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=self.home, env=self.env | env, capture_output=True, text=True, timeout=120)

    @contextmanager
    def at_home(self, token=None, offline=False):
        """What the environment of a new process would say, said to the library that is loaded already."""
        with self.monkeypatch.context() as patch:
            patch.chdir(self.home)
            patch.setattr(constants, "ENDPOINT", self.endpoint)
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.endpoint + RESOLVE)
            patch.setattr(constants, "HF_HUB_CACHE", str(self.cache))
            patch.setattr(constants, "HF_TOKEN_PATH", str(self.home / "hf" / "token"))
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            patch.setattr(constants, "HF_HUB_OFFLINE", offline)
            patch.setattr(client, "_PAUSES", (0.01, 0.02, 0.02, 0.02))
            patch.delenv("HF_TOKEN", raising=False)
            if token:
                patch.setenv("HF_TOKEN", token)
            yield

    def mergekit(self, *arguments, **env):
        """Run a command."""
        out, errors = StringIO(), StringIO()
        with self.at_home(**env), redirect_stdout(out), redirect_stderr(errors), pytest.raises(SystemExit) as end:
            commands.main(list(map(str, arguments)), prog_name="mergekit")
        return Answer(end.value.code or 0, out.getvalue(), errors.getvalue())

    def merge(self, recipe, out, *flags, **env):
        """Merge as a recipe says."""
        (self.home / "recipe.yml").write_text(recipe)
        return self.mergekit("merge", "recipe.yml", out, *flags, **env)
