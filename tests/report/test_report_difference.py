"""Distances between models, against NumPy."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit.errors import CheckpointError, IncompatibleModelsError, OutputError, UnsupportedError
from mergekit.kernels import GRAIN
from mergekit.report import difference, heatmap
from mergekit.report.difference import Distance, compare_models
from mergekit.report.grid import grid_of, most_changed
from mergekit.report.heatmap import draw_heatmap

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "vocab_size": 6}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def write(folder, tensors, config=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def weights(seed, dtype=torch.float32, width=70):
    """Two layers, of which one matrix is longer than two grains."""
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (6, width), "lm_head.weight": (6, width), "model.norm.weight": (width,)}
    for layer in range(2):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (width, width)
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (2 * width, width)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (width,)
    return {name: torch.from_numpy(random.standard_normal(shape)).to(dtype) for name, shape in shapes.items()}


def near(tensors, seed, dtype):
    """The same with half of the entries changed a little."""
    random = np.random.default_rng(seed)
    moved = {}
    for name, tensor in tensors.items():
        noise = 0.1 * random.standard_normal(tensor.shape) * (random.random(tensor.shape) < 0.5)
        moved[name] = (tensor.double() + torch.from_numpy(noise)).to(dtype)
    return moved


def oracle(a, b):
    """Relative and symmetric distance, cosine, share of changed entries."""
    a, b = np.concatenate([x.double().flatten() for x in a]), np.concatenate([x.double().flatten() for x in b])
    one, other, apart = np.linalg.norm(a), np.linalg.norm(b), np.linalg.norm(b - a)
    return apart / one, 2 * apart / (one + other), a @ b / one / other, np.mean(a != b)


def numbers(distance):
    return distance.relative, distance.symmetric, distance.cosine, distance.share


@pytest.mark.parametrize(("one", "other"), list(itertools.product(FLOATS, FLOATS)))
def test_distances_are_those_of_numpy(one, other, tmp_path):
    a = weights(1, FLOATS[one])
    b = near(a, 2, FLOATS[other])
    found = compare_models(write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert {tensor.name for tensor in found.tensors} == set(a)
    for tensor in found.tensors:
        expected = oracle([a[tensor.name]], [b[tensor.name]])
        np.testing.assert_allclose(numbers(tensor.distance), expected, rtol=1e-6)
        assert tensor.distance.share == expected[3]
        assert tensor.distance.broken == 0
    grid = grid_of(found)
    np.testing.assert_allclose(numbers(grid.all), oracle(a.values(), b.values()), rtol=1e-6)
    row = next(row for row in grid.rows if row.layer == 1)
    mine = [name for name in a if ".1." in name]
    np.testing.assert_allclose(numbers(row.all), oracle([a[n] for n in mine], [b[n] for n in mine]), rtol=1e-6)
    queries = [name for name in a if "q_proj" in name]
    expected = oracle([a[n] for n in queries], [b[n] for n in queries])
    np.testing.assert_allclose(numbers(grid.totals["q"]), expected, rtol=1e-6)


def test_the_grid_has_layers_and_what_stands_around_them(tmp_path):
    a = weights(1)
    grid = grid_of(compare_models(write(tmp_path / "a", a), write(tmp_path / "b", near(a, 2, torch.float32))))
    assert grid.parts == ("embedding", "q", "mlp", "norm", "head")
    assert [row.label for row in grid.rows] == ["before", "0", "1", "after"]
    assert [list(row.cells) for row in grid.rows] == [
        ["embedding"],
        ["q", "mlp", "norm"],
        ["q", "mlp", "norm"],
        ["norm", "head"],
    ]


@pytest.mark.parametrize("dtype", FLOATS)
def test_threads_and_chunks_do_not_matter(dtype, tmp_path, monkeypatch):
    a = weights(1, FLOATS[dtype], width=130)
    b = near(a, 2, FLOATS[dtype])
    b["lm_head.weight"][0, 0] = math.nan
    b["model.layers.0.mlp.up_proj.weight"][100, 3] = math.inf
    names = write(tmp_path / "a", a), write(tmp_path / "b", b)
    found = [compare_models(*names, workers=1), compare_models(*names, workers=3)]
    monkeypatch.setattr(difference, "_CHUNK", GRAIN)
    found += [compare_models(*names, workers=1), compare_models(*names, workers=4)]
    assert found[0] == found[1] == found[2] == found[3]
    assert grid_of(found[0]).all.broken == 2


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_model_equals_itself(dtype, tmp_path):
    a = weights(1, FLOATS[dtype])
    one = write(tmp_path / "a", a)
    for other in (one, write(tmp_path / "b", a)):
        found = compare_models(one, other)
        assert len(found.tensors) == len(a)
        assert all(numbers(tensor.distance) == (0, 0, 1, 0) for tensor in found.tensors)
        assert numbers(grid_of(found).all) == (0, 0, 1, 0)


def test_zeros(tmp_path):
    a, b = weights(1), weights(1)
    zeros = torch.zeros(70)
    a["model.norm.weight"], b["model.norm.weight"] = zeros, zeros
    a["model.layers.0.input_layernorm.weight"] = zeros
    b["model.layers.1.input_layernorm.weight"] = zeros
    found = compare_models(write(tmp_path / "a", a), write(tmp_path / "b", b))
    by_name = {tensor.name: numbers(tensor.distance) for tensor in found.tensors}
    assert by_name["model.norm.weight"] == (0, 0, None, 0)
    assert by_name["model.layers.0.input_layernorm.weight"] == (None, 2, None, 1)
    assert by_name["model.layers.1.input_layernorm.weight"] == (1, 2, None, 1)
    assert most_changed(found, "relative", 1)[0].name == "model.layers.0.input_layernorm.weight"


def test_the_symmetric_distance_is_the_same_the_other_way_round(tmp_path):
    names = write(tmp_path / "a", weights(1)), write(tmp_path / "b", weights(2, torch.bfloat16))
    there, back = (grid_of(compare_models(*pair)).all for pair in (names, names[::-1]))
    assert there.symmetric == back.symmetric
    assert there.relative != back.relative


def test_entries_that_are_no_numbers_are_left_out(tmp_path):
    a = weights(1)
    b = near(a, 2, torch.float32)
    name = "model.layers.1.mlp.up_proj.weight"
    a[name][3, 4], b[name][5, 6], b[name][7, 8] = math.nan, math.inf, -math.inf
    found = compare_models(write(tmp_path / "a", a), write(tmp_path / "b", b))
    tensor = next(tensor for tensor in found.tensors if tensor.name == name)
    kept = torch.isfinite(a[name]) & torch.isfinite(b[name])
    relative, symmetric, cosine, _ = oracle([a[name][kept]], [b[name][kept]])
    np.testing.assert_allclose(numbers(tensor.distance)[:3], (relative, symmetric, cosine), rtol=1e-6)
    assert tensor.distance.broken == 3
    assert tensor.distance.changed == int(torch.sum(a[name][kept] != b[name][kept]))


def test_differences_too_large_for_float32(tmp_path):
    a, b = weights(1), weights(1)
    a["model.norm.weight"], b["model.norm.weight"] = torch.full((70,), 3e38), torch.full((70,), -3e38)
    found = compare_models(write(tmp_path / "a", a), write(tmp_path / "b", b))
    norm = next(tensor for tensor in found.tensors if tensor.name == "model.norm.weight")
    np.testing.assert_allclose(numbers(norm.distance), (2, 2, -1, 1), rtol=1e-6)


def test_integers_are_compared_and_empty_tensors_are_no_trouble(tmp_path):
    extra = {"model.steps": torch.tensor([3, 4]), "model.nothing": torch.zeros(0, 5), "model.scalar": torch.tensor(2.0)}
    other = {"model.steps": torch.tensor([3, 0]), "model.nothing": torch.zeros(0, 5), "model.scalar": torch.tensor(1.0)}
    found = compare_models(write(tmp_path / "a", weights(1) | extra), write(tmp_path / "b", weights(1) | other))
    by_name = {tensor.name: tensor.distance for tensor in found.tensors}
    assert numbers(by_name["model.steps"]) == (0.8, 1.0, 0.6, 0.5)
    assert numbers(by_name["model.nothing"]) == (0, 0, None, 0)
    assert by_name["model.scalar"].relative == 0.5


def test_what_cannot_be_compared_is_listed(tmp_path):
    a, b = weights(1), weights(1)
    del a["model.layers.0.input_layernorm.weight"], b["lm_head.weight"]
    b["model.embed_tokens.weight"] = torch.zeros(8, 70)
    a["model.layers.1.scale"] = b["model.layers.1.scale"] = torch.ones(3).to(torch.complex64)
    found = compare_models(write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert found.only_first == ("lm_head.weight",)
    assert found.only_second == ("model.layers.0.input_layernorm.weight",)
    assert found.unlike == {
        "model.embed_tokens.weight": "shapes [6, 70] and [8, 70]",
        "model.layers.1.scale": "complex64 cannot be compared",
    }
    assert {tensor.name for tensor in found.tensors} == a.keys() & b.keys() - found.unlike.keys()


def test_other_names_for_the_same_tensors(tmp_path):
    a = weights(1)
    b = {name.removeprefix("model."): tensor for name, tensor in near(a, 2, torch.float32).items()}
    found = compare_models(write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert {tensor.name: tensor.other for tensor in found.tensors} == {name: name.removeprefix("model.") for name in a}


def test_models_without_a_common_tensor(tmp_path):
    names = write(tmp_path / "a", {"one": torch.ones(3)}), write(tmp_path / "b", {"other": torch.ones(3)})
    with pytest.raises(IncompatibleModelsError, match="no tensor in common"):
        compare_models(*names)


@pytest.mark.parametrize("name", ["nowhere", ""])
def test_a_model_that_is_not_there(name, tmp_path):
    with pytest.raises(CheckpointError):
        compare_models(write(tmp_path / "a", weights(1)), name and str(tmp_path / name))


def test_progress_counts_every_byte(tmp_path):
    told, read = [], []
    names = write(tmp_path / "a", weights(1)), write(tmp_path / "b", weights(2, torch.float16))
    compare_models(*names, planned=lambda nbytes, _: told.append(nbytes), advance=read.append)
    size = sum(tensor.nbytes for folder in names for tensor in load_file(f"{folder}/model.safetensors").values())
    assert told == [size]
    assert sum(read) == size


def test_totals_are_exact():
    parts = [Distance(entries=1, first=value) for value in (1e16, 1.0, -1e16)]
    assert Distance.total(parts) == Distance(entries=3, first=1.0)


@pytest.mark.parametrize("measure", ["relative", "symmetric", "cosine", "changed"])
def test_a_heatmap(measure, tmp_path):
    a = weights(1)
    a["model.layers.0.input_layernorm.weight"] = torch.zeros(70)
    grid = grid_of(compare_models(write(tmp_path / "a", a), write(tmp_path / "b", near(a, 2, torch.float32))))
    file = tmp_path / "map.png"
    draw_heatmap(grid, measure, ("a", "long/" * 50 + "$b$"), file)
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert 300 < height < width < 1500
    with pytest.raises(OutputError):
        draw_heatmap(grid, measure, ("a", "long/" * 50 + "$b$"), tmp_path / "nowhere" / "map.png")


def test_a_heatmap_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(heatmap, "find_spec", lambda _: None)
    with pytest.raises(UnsupportedError, match=r"pip install 'mergekit\[plot\]'"):
        heatmap.require_matplotlib()


def test_quantised_weights_are_unpacked(tmp_path):
    a, b = weights(1), weights(1)
    name = "model.layers.0.mlp.up_proj.weight"
    codes = (b[name] / 0.5).to(torch.float8_e4m3fn)
    b[name], b[f"{name}_scale_inv"] = codes, torch.full((2, 1), 0.5)
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    second = write(tmp_path / "b", b, CONFIG | {"quantization_config": quantised})
    found = compare_models(write(tmp_path / "a", a), second)
    tensor = next(tensor for tensor in found.tensors if tensor.name == name)
    expected = oracle([a[name]], [codes.double() * 0.5])
    np.testing.assert_allclose(numbers(tensor.distance), expected, rtol=1e-6)
    assert found.only_second == ()
    assert grid_of(found).totals["q"].relative == 0


def test_an_adapter_is_what_it_adds(tmp_path):
    a = weights(1)
    name = "model.layers.1.self_attn.q_proj"
    left, right = torch.randn(70, 3), torch.randn(3, 70)
    folder = tmp_path / "adapter"
    folder.mkdir()
    prefix = f"base_model.model.{name}.lora_"
    save_file({f"{prefix}A.weight": right, f"{prefix}B.weight": left}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    base = write(tmp_path / "a", a)
    found = compare_models(base, f"{base}+{folder}")
    by_name = {tensor.name: tensor.distance for tensor in found.tensors}
    expected = oracle([a[f"{name}.weight"]], [a[f"{name}.weight"].double() + 2 * left.double() @ right.double()])
    np.testing.assert_allclose(numbers(by_name[f"{name}.weight"]), expected, rtol=1e-5)
    assert all(distance.apart == 0 for other, distance in by_name.items() if other != f"{name}.weight")
