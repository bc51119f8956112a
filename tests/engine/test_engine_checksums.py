"""Reports hold the checksum of every tensor as it lies in its file, however the merge was cut up."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_checkpoints import fine_tuned, llama_config, llama_shapes, merge, random_tensors, recipe, write_model

WORDS = 1 << 64
MORE = {"odd": (7, 1009), "scalar": (), "empty": (0, 7), "long": (3, 200_001)}


def key(numbers):
    """Outputs of splitmix64 with seed 0, made odd."""
    with np.errstate(over="ignore"):
        x = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)


def twin(octets):
    """The checksum in NumPy."""
    words = np.frombuffer(octets + bytes(-len(octets) % 4), "<u4").astype(np.uint64)
    places = np.arange(words.size)
    with np.errstate(over="ignore"):
        return int((words * key(places % 1024) * key(1024 + places // 1024)).sum())


def written(folder):
    """The bytes of all tensors."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                found[name] = opened.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    config = llama_config(layers=1)
    shapes = {**llama_shapes(config), **{f"model.{name}.weight": shape for name, shape in MORE.items()}}
    base = random_tensors(shapes, 0)
    base["model.layers.0.self_attn.rotary.inv_freq"] = torch.arange(3)
    base["model.flags"] = torch.tensor([True, False, True])
    for seed, name in enumerate(("base", "a", "b")):
        write_model(root / name, fine_tuned(base, seed) if seed else base, config)
    return root


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("method", ["linear", "model_stock", "passthrough"])
def test_checksums_are_those_of_the_written_bytes(method, dtype, models, tmp_path):
    base = str(models / "base") if method == "model_stock" else None
    names = "a" if method == "passthrough" else "ab"
    text = recipe(method, [models / name for name in names], base_model=base, out_dtype=dtype)
    rows = {}
    for workers in (1, 3):
        watch = merge(text, tmp_path / str(workers), workers=workers, max_memory=340_000_000, shard_bytes=100_000)
        rows[workers] = {row["name"]: row["checksum"] for row in watch.report["tensors"]}
        found = written(tmp_path / str(workers))
        assert rows[workers] == {name: f"{twin(octets):016x}" for name, octets in found.items()}
    assert rows[1] == rows[3]
    assert rows[1]["model.empty.weight"] == "0" * 16
