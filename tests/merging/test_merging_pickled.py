"""Pickled models merge to the same bytes as the same models in safetensors."""

import hashlib
import json
import os
import zipfile

import pytest
import torch
from tiny_checkpoints import (
    Watch,
    fine_tuned,
    llama_config,
    llama_shapes,
    merge,
    octets,
    random_tensors,
    read_model,
    recipe,
    write_model,
)

from mergekit.errors import CheckpointError, RecipeError
from mergekit.merging import JobOptions, merge_recipe
from mergekit.report.verify import verify_folder

SINGLE = "pytorch_model.bin"
MODELS = ("base", "a", "b")


def dispersed(tensors):
    """The same tensors; the entries of most lie apart: transposed, cut out, every second, and all in one storage."""
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 2}
    pool = torch.cat([tensor.reshape(-1) for tensor in matrices.values()])
    parts = pool.split([tensor.numel() for tensor in matrices.values()])
    changed = dict(tensors)
    for number, (name, part) in enumerate(zip(matrices, parts, strict=True)):
        rows, columns = tensors[name].shape
        wide = torch.zeros(rows, 2 * columns + 3, dtype=part.dtype)
        ways = (
            wide[:, 3 : 3 + columns],
            wide[:, 1 : 2 * columns : 2],
            torch.empty(columns, rows, dtype=part.dtype).t(),
        )
        way = (part.view(rows, columns), *ways)[number % 4]
        changed[name] = way.copy_(tensors[name])
    return changed


def single(folder, tensors):
    torch.save(tensors, folder / SINGLE)


def legacy(folder, tensors):
    torch.save(tensors, folder / SINGLE, _use_new_zipfile_serialization=False)


def wrapped(folder, tensors):
    torch.save({"epoch": 3, "state_dict": tensors}, folder / SINGLE)


def scattered(folder, tensors):
    torch.save(dispersed(tensors), folder / SINGLE)


def sharded(folder, tensors):
    weight_map, count = {}, 3
    for shard in range(count):
        file = f"pytorch_model-{shard + 1:05d}-of-{count:05d}.bin"
        part = dict(list(tensors.items())[shard::count])
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


WAYS = {way.__name__: way for way in (single, legacy, wrapped, scattered, sharded)}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def tensors(request):
    """Three models, with an integer buffer."""
    config = llama_config(layers=2, dtype=request.param)
    base = random_tensors(llama_shapes(config), 0, request.param) | {"model.steps": torch.arange(5)}
    return config, {"base": base, "a": fine_tuned(base, 1), "b": fine_tuned(base, 2)}


def write_all(root, config, models, way=None):
    for name, tensors in models.items():
        if way is None:
            write_model(root / name, tensors, config)
        else:
            (root / name).mkdir(parents=True)
            (root / name / "config.json").write_text(json.dumps(config))
            way(root / name, tensors)
    return root


RECIPES = {
    "linear": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.6},
    "dare_ties": {"weight": 0.5, "density": 0.6},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bytes(tensors, tmp_path, way):
    written = []
    for folder in (write_all(tmp_path / "safe", *tensors), write_all(tmp_path / "pickled", *tensors, WAYS[way])):
        for method, parameters in RECIPES.items():
            models = [folder / "a", folder / "b"]
            base = None if method == "linear" else str(folder / "base")
            merge(recipe(method, models, parameters=parameters, base_model=base), folder / method)
        written.append([read_model(folder / method) for method in RECIPES])
        assert all(verify_folder(folder / method).ok for method in RECIPES)
    for safe, pickled in zip(*written, strict=True):
        assert pickled.keys() == safe.keys() == tensors[1]["a"].keys()
        assert all(octets(pickled[name]) == octets(safe[name]) for name in safe)


def test_one_merge_of_both(tensors, tmp_path):
    config, models = tensors
    safe, pickled = write_all(tmp_path / "safe", config, models), write_all(tmp_path / "bin", config, models, scattered)
    merge(recipe("linear", [(safe / "a", {"weight": 1}), (pickled / "b", {"weight": 1})]), tmp_path / "mixed")
    merge(recipe("linear", [(safe / "a", {"weight": 1}), (safe / "b", {"weight": 1})]), tmp_path / "pure")
    mixed, pure = read_model(tmp_path / "mixed"), read_model(tmp_path / "pure")
    assert mixed.keys() == pure.keys()
    assert all(octets(mixed[name]) == octets(pure[name]) for name in pure)


def test_a_copy_is_the_same_whatever_the_strides(tensors, tmp_path):
    config, models = tensors
    root = write_all(tmp_path, config, models, scattered)
    merge(recipe("passthrough", [root / "a"]), tmp_path / "out")
    copied = read_model(tmp_path / "out")
    assert all(octets(copied[name]) == octets(tensor) for name, tensor in models["a"].items())


def test_slices_of_strided_tensors(tensors, tmp_path):
    config, models = tensors
    layers = [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [1, 2]}]
    written = []
    for root in (write_all(tmp_path / "safe", config, models), write_all(tmp_path / "bin", config, models, scattered)):
        slices = [{"sources": [{**source, "model": str(root / source["model"])}]} for source in layers]
        merge(recipe("passthrough", slices=slices), root / "stack")
        written.append(read_model(root / "stack"))
    safe, pickled = written
    assert "model.layers.2.mlp.down_proj.weight" in pickled
    assert all(octets(pickled[name]) == octets(safe[name]) for name in safe)


def test_the_report_names_the_pickle_by_its_hash(tensors, tmp_path):
    config, models = tensors
    root = write_all(tmp_path, config, models, wrapped)
    watch = merge(recipe("linear", [root / "a", root / "b"], parameters={"weight": 1}), tmp_path / "out")
    with zipfile.ZipFile(root / "a" / SINGLE) as archive:
        head = archive.read("pytorch_model/data.pkl")
    [file] = watch.report["parents"][0]["files"]
    assert file["name"] == SINGLE
    assert file["header_sha256"] == hashlib.sha256(head).hexdigest()
    assert any("only `state_dict` is read, not `epoch`" in warning for warning in watch.warnings)


@pytest.mark.parametrize("way", [single, legacy, scattered, sharded])
def test_pickled_folders_are_verified(tensors, tmp_path, way):
    config, models = tensors
    root = write_all(tmp_path, config, models, way)
    found = verify_folder(root / "a")
    assert found.ok
    assert found.tensors == len(models["a"])
    name = "model.layers.1.mlp.up_proj.weight"
    models["b"][name][3, 5] = float("nan")
    way(root / "b", models["b"])
    [problem] = verify_folder(root / "b").problems
    assert problem.what == f"1 of {48 * 32} entries of `{name}` are infinite or not a number"


def test_a_pickle_with_code_ends_the_merge_before_it_begins(tensors, tmp_path):
    config, models = tensors
    root = write_all(tmp_path, config, models, single)
    torch.save({"args": torch.nn.Linear(1, 1), **models["b"]}, root / "b" / SINGLE)
    with pytest.raises(RecipeError, match=r"asks for `torch\.nn.modules\.linear\.Linear`") as caught:
        merge(recipe("linear", [root / "a", root / "b"], parameters={"weight": 1}), tmp_path / "out")
    assert str(root / "b" / SINGLE) in str(caught.value)
    assert not (tmp_path / "out").exists()
    problems = verify_folder(root / "b").problems
    assert any("nothing was run" in problem.what for problem in problems)


def test_a_pickle_that_shrinks_after_planning(tensors, tmp_path):
    config, models = tensors
    root = write_all(tmp_path, config, models, legacy)
    file = root / "b" / SINGLE
    text = recipe("linear", [root / "a", root / "b"], parameters={"weight": 1})

    class Shrinking(Watch):
        def planned(self, plan):
            os.truncate(file, 4000)

    with pytest.raises(CheckpointError, match="the file ends at byte"):
        merge_recipe(text, tmp_path / "out", file="merge.yml", options=JobOptions(), progress=Shrinking())
    assert not (tmp_path / "out").exists()
