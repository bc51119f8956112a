"""Make four checkpoints in the shape of Qwen2-0.5B with random weights: `base` and its fine-tunes `a`, `b` and `c`.

All tensors are bfloat16 and normally distributed, so a model is one flat run of numbers behind a header. It is drawn in
blocks, each from a generator of its own, which makes the files the same on any number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MODELS = ("base", "a", "b", "c")
LAYERS_OF_SCALE = {1: 24, 2: 57}
"""Layers that give 0.99 GB, the real model, and 1.97 GB: the embedding is 28 % of the small one and does not grow."""

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 896, 4864, 14, 2, 64, 151936
BASE_DEVIATION, DELTA_DEVIATION = 0.02, 0.001
BLOCK = 1 << 20
"""Entries that are drawn at a time."""

Shape = tuple[int, ...]


def layer_shapes() -> dict[str, Shape]:
    """Shapes of one decoder layer by the name inside the layer."""
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    return {
        "input_layernorm.weight": (HIDDEN,),
        "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.k_proj.weight": (keys, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, queries),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.q_proj.weight": (queries, HIDDEN),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, HIDDEN),
    }


def model_shapes(layers: int) -> dict[str, Shape]:
    """Shapes of all tensors, in the order of their names; the head is tied to the embedding and has no tensor."""
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes().items()}
    return dict(sorted(shapes.items()))


def model_config(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "layer_types": ["full_attention"] * layers,
        "max_position_embeddings": 131072,
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }


def header(shapes: dict[str, Shape]) -> bytes:
    """Return the length and the JSON that open a safetensors file, padded so that the tensors start at 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, shape in shapes.items():
        start, stop = stop, stop + 2 * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, stop)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round finite float32 to the bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16)


def to_float32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def draw(seed: Sequence[int], count: int, deviation: float) -> npt.NDArray[np.float32]:
    values = np.random.Generator(np.random.SFC64(seed)).standard_normal(count, dtype=np.float32)
    values *= np.float32(deviation)
    return values


def blocks(count: int) -> Iterator[tuple[int, int]]:
    """Yield the first entry of every block and its number of entries."""
    for start in range(0, count, BLOCK):
        yield start, min(BLOCK, count - start)


def write_weights(file: Path, shapes: dict[str, Shape], seed: tuple[int, int], base: Path | None) -> None:
    """Write a weights file under another name first, so that a file with its own name is always whole."""
    head = header(shapes)
    count = sum(map(prod, shapes.values()))
    origin = None if base is None else np.memmap(base, np.uint16, "r", offset=len(head), shape=(count,))
    partial = file.with_suffix(".partial")
    descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)

    def write_block(block: tuple[int, int]) -> None:
        start, entries = block
        values = draw((*seed, start), entries, BASE_DEVIATION if origin is None else DELTA_DEVIATION)
        if origin is not None:
            values += to_float32(origin[start : start + entries])
        os.pwrite(descriptor, to_bfloat16(values).data, len(head) + 2 * start)

    try:
        os.posix_fallocate(descriptor, 0, len(head) + 2 * count)
        os.pwrite(descriptor, head, 0)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(write_block, blocks(count)):
                pass
    finally:
        os.close(descriptor)
    partial.rename(file)


def make_model(out: Path, name: str, layers: int, seed: int) -> None:
    """Make one model folder; a weights file of the right size is kept as it is."""
    folder, shapes = out / name, model_shapes(layers)
    file, size = folder / "model.safetensors", len(header(shapes)) + 2 * sum(map(prod, shapes.values()))
    if file.is_file() and file.stat().st_size == size:
        return
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model_config(layers), indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 151643, "max_new_tokens": 2048}) + "\n")
    base = None if name == "base" else out / "base" / file.name
    write_weights(file, shapes, (seed, MODELS.index(name)), base)
    print(f"{folder}: {size / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that gets the folders base, a, b and c")
    parser.add_argument(
        "--scale", type=int, choices=LAYERS_OF_SCALE, default=1, help="1: 0.99 GB each, 2: 1.97 GB each"
    )
    parser.add_argument("--layers", type=int, help="number of layers, in place of the one of --scale")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in MODELS:
        make_model(options.out, name, options.layers or LAYERS_OF_SCALE[options.scale], options.seed)


if __name__ == "__main__":
    main()
