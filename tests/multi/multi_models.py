"""Tiny checkpoints and pipelines about them."""

import json

import numpy as np
import torch
from safetensors.torch import save_file

TITLES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def shapes_of(width=24, inner=40, layers=2, rows=48):
    yield "model.embed_tokens.weight", (rows, width)
    for index in range(layers):
        stem = f"model.layers.{index}."
        yield from ((f"{stem}self_attn.{name}_proj.weight", (width, width)) for name in "qkvo")
        yield from ((f"{stem}mlp.{name}_proj.weight", (inner, width)) for name in ("gate", "up"))
        yield f"{stem}mlp.down_proj.weight", (width, inner)
        yield from ((f"{stem}{name}_layernorm.weight", (width,)) for name in ("input", "post_attention"))
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (rows, width)


def write_model(folder, seed, dtype="float32", spread=0.1, **sizes):
    """A Llama of a common origin, to which the seed adds some noise."""
    folder.mkdir(parents=True)
    shapes = dict(shapes_of(**sizes))
    origin, own = np.random.default_rng(7), np.random.default_rng(seed)
    tensors = {
        name: torch.from_numpy(
            origin.standard_normal(shape, np.float32) + spread * own.standard_normal(shape, np.float32)
        ).to(TITLES[dtype])
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    rows, width = shapes["model.embed_tokens.weight"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": sum("input_layernorm" in name for name in shapes),
        "num_attention_heads": 2,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def weights(folder):
    """The bytes of all weight files by name."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def states(done):
    """What became of each stage."""
    return {each.step.stage.key: each.step.state for each in done}
