from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from mergekit.merging import JobOptions, merge_recipe
from mergekit.plan import PlanOptions

HIDDEN, VOCABULARY, INNER = 64, 128, 96
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
END = {"id": 100, "content": "</s>", **_FLAGS, "special": True}
MakeModel = Callable[..., Path]
Merge = Callable[..., Path]

LAYER = {
    "input_layernorm.weight": (HIDDEN,),
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "mlp.up_proj.weight": (INNER, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, INNER),
}


def shapes(layers: int, head: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{suffix}": shape for suffix, shape in LAYER.items()}
    found["model.norm.weight"] = (HIDDEN,)
    return found | ({"lm_head.weight": (VOCABULARY, HIDDEN)} if head else {})


def save(tensors: dict[str, np.ndarray], file: Path, dtype: str) -> None:
    if dtype == "BF16":
        import torch
        from safetensors.torch import save_file as save_torch

        save_torch({name: torch.from_numpy(array).to(torch.bfloat16) for name, array in tensors.items()}, file)
    else:
        kind = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
        save_file(
            {name: array if array.dtype.kind == "i" else array.astype(kind) for name, array in tensors.items()}, file
        )


def tower(seed: int) -> dict[str, np.ndarray]:
    """A vision tower whose layers config.json does not count."""
    random = np.random.default_rng(seed)
    names = [f"vision_tower.layers.{layer}.{part}.weight" for layer in range(2) for part in ("fc1", "fc2")]
    return {name: random.standard_normal((8, 8)).astype(np.float32) for name in names}


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a small Llama: fine-tunes of one model, each a little off it in its own way."""

    def make(
        name: str,
        seed: int,
        dtype: str = "F32",
        *,
        layers: int = 3,
        tied: bool = False,
        head: bool = True,
        card: str | None = None,
        vision: bool = False,
        extra: dict[str, np.ndarray] | None = None,
    ) -> Path:
        common, own = np.random.default_rng(0), np.random.default_rng(seed)
        tensors = {}
        for tensor, shape in shapes(layers, head).items():
            tensors[tensor] = (common.standard_normal(shape) + 0.1 * own.standard_normal(shape)).astype(np.float32)
        if tied and head:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        folder = tmp_path / name
        folder.mkdir(parents=True)
        tensors |= (tower(seed) if vision else {}) | (extra or {})
        save(tensors, folder / "model.safetensors", dtype)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "num_hidden_layers": layers,
            "tie_word_embeddings": tied,
            "vocab_size": VOCABULARY,
        }
        (folder / "config.json").write_text(json.dumps(config))
        tokenizer = {"model": {"type": "BPE", "vocab": {f"t{index}": index for index in range(100)}, "merges": []}}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": [END]}))
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        return folder

    return make


@pytest.fixture
def merge(tmp_path: Path) -> Merge:
    """Carry out a recipe, given as a mapping or as text; returns the new folder."""

    def run(recipe: dict[str, object] | str, name: str = "out", **options: object) -> Path:
        text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False)
        merge_recipe(text, tmp_path / name, options=JobOptions(plan=PlanOptions(workers=2, **options)))  # type: ignore[arg-type]
        return tmp_path / name

    return run


def recipe_for(method: str, base: Path, a: Path, b: Path) -> dict[str, object]:
    """A recipe of each method on three models."""
    models = [{"model": str(a), "parameters": {"weight": 0.7}}, {"model": str(b), "parameters": {"weight": 0.4}}]
    if method == "passthrough":
        ranges = [(a, [0, 2]), (b, [1, 3])]
        slices = [{"sources": [{"model": str(model), "layer_range": layers}]} for model, layers in ranges]
        return {"merge_method": method, "slices": slices}
    if method == "slerp":
        models = [{"model": str(a)}]
        return {"merge_method": method, "base_model": str(base), "models": models, "parameters": {"t": [0.2, 0.6]}}
    if method == "linear":
        return {"merge_method": method, "models": models}
    return {"merge_method": method, "base_model": str(base), "models": models}


@pytest.fixture
def recipe_of(make_model: MakeModel) -> Callable[..., dict[str, object]]:
    """A recipe on three new models."""

    def build(method: str, dtype: str = "F32", **options: object) -> dict[str, object]:
        models = [
            make_model(f"models/{method}-{name}", seed, dtype, **options)
            for seed, name in enumerate(("base", "a", "b"))
        ]
        return recipe_for(method, *models)

    return build
