"""Layers drawn from several models."""

import json
from collections import Counter
from math import inf, nan

import pytest
import yaml
from safetensors.torch import load_file
from small_models import call, llama_tensors, write_llama

from mergekit.errors import IncompatibleModelsError, MergekitError
from mergekit.fronts import shuffle_layers


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        write_llama(folder / name, seed)
    return folder


def drawn(text):
    """Model and layer of each slice."""
    slices = yaml.load(text, yaml.CSafeLoader)["slices"]
    assert all(len(piece["sources"]) == 1 for piece in slices)
    sources = [piece["sources"][0] for piece in slices]
    assert all(source["layer_range"][1] == source["layer_range"][0] + 1 for source in sources)
    return [(source["model"], source["layer_range"][0]) for source in sources]


def test_o3_the_same_seed_draws_the_same_layers():
    one, same, other = (shuffle_layers(["a", "b"], [20, 20], seed=seed) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_o3_the_plan_is_slices_of_one_layer_each_at_its_place():
    layers = drawn(shuffle_layers(["a", "b"], [50, 60], seed=1))
    assert [layer for _, layer in layers] == list(range(50))
    assert {model for model, _ in layers} == {"a", "b"}


def test_o3_weights_are_chances_and_need_not_be_given():
    equal = Counter(model for model, _ in drawn(shuffle_layers(["a", "b"], [2000, 2000], seed=2)))
    unequal = Counter(model for model, _ in drawn(shuffle_layers(["a", "b"], [2000, 2000], [1, 3], seed=2)))
    assert 900 < equal["a"] < 1100
    assert 430 < unequal["a"] < 570
    assert {model for model, _ in drawn(shuffle_layers(["a", "b"], [9, 9], [0, 1]))} == {"b"}


def test_o3_full_random_draws_from_all_layers_of_every_model():
    layers = drawn(shuffle_layers(["a", "b"], [1000, 600], [0.5, 0.5], full_random=True, seed=5))
    counts = Counter(model for model, _ in layers)
    assert counts == {"a": 500, "b": 300}
    for model, height in (("a", 1000), ("b", 600)):
        numbers = [layer for other, layer in layers if other == model]
        assert min(numbers) < height // 10
        assert max(numbers) >= height - height // 10
        assert numbers != sorted(numbers)
    assert len(drawn(shuffle_layers(["a", "b", "c"], [6, 6, 6], full_random=True))) == 6


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [-1, 2], [0, 0], [nan, 1], [1, inf]])
@pytest.mark.parametrize("full_random", [False, True])
def test_weights_that_make_no_sense_are_refused(weights, full_random):
    with pytest.raises(MergekitError):
        shuffle_layers(["a", "b"], [4, 4], weights, full_random=full_random)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_with_fewer_layers_is_refused_whatever_is_drawn(seed):
    with pytest.raises(IncompatibleModelsError, match="b has 3 layers, and a has 4"):
        shuffle_layers(["a", "b"], [4, 3], [1000, 1e-9], seed=seed)
    assert len(drawn(shuffle_layers(["a", "b"], [4, 3], [1, 0], seed=seed))) == 4
    assert len(drawn(shuffle_layers(["a", "b"], [4, 3], [1, 1], seed=seed, full_random=True))) == 7


def test_no_layer_at_all_is_refused():
    with pytest.raises(MergekitError, match="no layer is left"):
        shuffle_layers(["a"], [4], [0.1], full_random=True)


def test_the_command_makes_the_model_that_its_recipe_says(models, tmp_path):
    flags = ["-m", models / "a", "-m", models / "b", "--random-seed", 7, "--write-yaml", tmp_path / "drawn.yml"]
    done = call("layershuffle", tmp_path / "out", *flags)
    assert done.exit_code == 0, done.output
    layers = drawn((tmp_path / "drawn.yml").read_text())
    assert len({model for model, _ in layers}) == 2
    sources = {str(models / name): llama_tensors(seed) for seed, name in enumerate("ab")}
    written = load_file(tmp_path / "out" / "model.safetensors")
    for place, (model, layer) in enumerate(layers):
        name = "mlp.up_proj.weight"
        assert (written[f"model.layers.{place}.{name}"] == sources[model][f"model.layers.{layer}.{name}"]).all()
    assert (written["model.embed_tokens.weight"] == sources[layers[0][0]]["model.embed_tokens.weight"]).all()
    assert (written["lm_head.weight"] == sources[layers[-1][0]]["lm_head.weight"]).all()
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == (tmp_path / "drawn.yml").read_text()
    again = call("layershuffle", tmp_path / "again", *flags, "--full-random", "--fp16")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again" / "config.json").read_text())["torch_dtype"] == "float16"


def test_a_dry_run_needs_no_output_and_prints_the_recipe(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("layershuffle", "-m", models / "a", "--dry-run", "--print-yaml")
    assert done.exit_code == 0, done.output
    assert drawn(done.stdout.rpartition("layers ")[0]) == [(str(models / "a"), layer) for layer in range(4)]
    told = json.loads(call("layershuffle", "-m", models / "a", "--dry-run", "--json").stdout)
    assert drawn(told["recipe"]) == [(str(models / "a"), layer) for layer in range(4)]
    planned = call("layershuffle", "out", "-m", models / "a", "--plan")
    assert "out (not written)" in planned.stdout
    assert list(tmp_path.iterdir()) == []


def test_paths_are_meant_literally(tmp_path):
    names = write_llama(tmp_path / "a+b@c", 0), write_llama(tmp_path / "d: @e", 1)
    done = call(
        "layershuffle", tmp_path / "out", "-m", names[0], "-m", names[1], "--write-yaml", tmp_path / "drawn.yml"
    )
    assert done.exit_code == 0, done.stderr
    written = load_file(tmp_path / "out" / "model.safetensors")
    for source, layer in drawn((tmp_path / "drawn.yml").read_text()):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        seed = [str(each) for each in names].index(source["model"]["path"])
        assert (written[name] == llama_tensors(seed)[name]).all()


def test_an_output_is_needed_to_merge(models):
    done = call("layershuffle", "-m", models / "a")
    assert done.exit_code == 2
    assert "Missing argument 'OUT_PATH'" in done.stderr
    told = call("layershuffle", "-m", models / "a", "--json")
    assert (told.exit_code, json.loads(told.stdout)["error"]["type"]) == (2, "UsageError")
