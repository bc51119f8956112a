"""Tiny models, and commands about them."""

import json

import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mergekit.cli.main import commands

WIDTH, INNER, ROWS = 16, 24, 32


def llama_tensors(seed, layers=4, rows=ROWS):
    random = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (rows, WIDTH)}
    for index in range(layers):
        stem = f"model.layers.{index}."
        shapes |= {f"{stem}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{stem}mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{stem}mlp.down_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{stem}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (rows, WIDTH)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def config_of(layers=4, rows=ROWS, **more):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **more,
    }


def write(folder, tensors, config):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def write_llama(folder, seed, layers=4, **more):
    return write(folder, llama_tensors(seed, layers), config_of(layers, **more))


def call(*words):
    return CliRunner().invoke(commands, [str(word) for word in words])
