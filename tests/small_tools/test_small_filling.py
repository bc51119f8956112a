"""A part that was merged by itself is put back into its whole."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import call, config_of, llama_tensors, write, write_llama

from mergekit.errors import IncompatibleModelsError
from mergekit.fronts import Filling, plan_filling
from mergekit.fronts.filling import shared_prefix

VISION = {"vision_tower.blocks.0.fc.weight": torch.ones(4, 4), "vision_tower.ids": torch.arange(3)}


def whole_of(prefix, seed=0, head=None, **more):
    """A model whose language part stands behind a prefix, with a vision part beside it."""
    names = {name: (head if head and name == "lm_head.weight" else prefix + name) for name in llama_tensors(seed)}
    tensors = {names[name]: tensor for name, tensor in llama_tensors(seed).items()}
    config = {"architectures": ["Whole"], "model_type": "whole", "text_config": config_of()}
    return {**VISION, **tensors}, {**config, **more}


@pytest.fixture
def part(tmp_path):
    return write_llama(tmp_path / "part", 5)


@pytest.mark.parametrize(
    "prefix", ["", "language_model.", "model.language_model.", "outer.model.text.language.", "thinker.model."]
)
def test_o6_a_prefix_of_any_number_of_components_is_found_out(prefix, part, tmp_path):
    tensors, config = whole_of(prefix)
    write(tmp_path / "whole", tensors, config)
    done = call("fill-missing-params", tmp_path / "whole", part, "--output_dir", tmp_path / "out", "--strict")
    assert done.exit_code == 0, done.output
    written, ours = load_file(tmp_path / "out" / "model.safetensors"), llama_tensors(5)
    assert written.keys() == tensors.keys()
    assert all((written[prefix + name] == tensor).all() for name, tensor in ours.items())
    assert "from the parents" in call("verify", tmp_path / "out").output
    assert call("reproduce", tmp_path / "out").exit_code == 0
    assert all((written[name] == tensor).all() for name, tensor in VISION.items())
    assert f"{len(ours)} of {len(tensors)} tensors are those of {part}" in done.stderr


def test_o6_words_that_newer_libraries_put_inside_of_names_are_found_out(part, tmp_path):
    tensors = {name.replace("model.", "model.language_model.", 1): one for name, one in llama_tensors(0).items()}
    write(tmp_path / "whole", {**VISION, **tensors}, whole_of("")[1])
    plan = plan_filling(str(tmp_path / "whole"), str(part))
    taken = {task.out.name: task.operands[0].view.spec.name for task in plan.tasks if task.operands[0].model == 1}
    assert taken == dict(zip(tensors, llama_tensors(0), strict=True))


def test_o6_other_files_come_along_and_no_index_is_stale(part, tmp_path):
    tensors, config = whole_of("language_model.")
    whole = tmp_path / "whole"
    whole.mkdir()
    places = {}
    for number, names in enumerate([list(tensors)[:9], list(tensors)[9:]], 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, whole / file)
        places |= dict.fromkeys(names, file)
    (whole / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (whole / "config.json").write_text(json.dumps(config))
    (whole / "preprocessor_config.json").write_text('{"size": 224}')
    (whole / "LICENSE").write_text("free")
    assert call("fill-missing-params", whole, part).exit_code == 0
    out = tmp_path / "whole--part"
    assert sorted(file.name for file in out.iterdir()) == [
        "LICENSE",
        "README.md",
        "config.json",
        "merge_report.json",
        "mergekit_config.yml",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert json.loads((out / "config.json").read_text()) == {**config, "torch_dtype": "float32"}
    sharded = call("fill-missing-params", whole, part, "--output-dir", tmp_path / "small", "--max_shard_size", "8kB")
    assert sharded.exit_code == 0, sharded.output
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert all((tmp_path / "small" / file).exists() for file in index["weight_map"].values())


def test_pickled_inputs_are_read(tmp_path):
    tensors, config = whole_of("language_model.")
    for name, content, described in (("whole", tensors, config), ("part", llama_tensors(5), config_of())):
        (tmp_path / name).mkdir()
        torch.save(content, tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "config.json").write_text(json.dumps(described))
    assert call("fill-missing-params", tmp_path / "whole", tmp_path / "part").exit_code == 0
    written = load_file(tmp_path / "whole--part" / "model.safetensors")
    assert (written["language_model.model.norm.weight"] == llama_tensors(5)["model.norm.weight"]).all()


def test_names_can_be_told(part, tmp_path):
    tensors = {
        name.replace("model.layers", "decoder.blocks").replace("lm_head", "decoder.out"): tensor
        for name, tensor in llama_tensors(0).items()
    }
    write(tmp_path / "whole", {**VISION, **tensors}, whole_of("")[1])
    flags = ["--map", "model.layers=decoder.blocks", "--map", "lm_head=decoder.out", "--prefix", "", "--strict"]
    done = call("fill-missing-params", tmp_path / "whole", part, "--output-dir", tmp_path / "out", *flags)
    assert done.exit_code == 0, done.output
    written, ours = load_file(tmp_path / "out" / "model.safetensors"), llama_tensors(5)
    assert (written["decoder.blocks.3.mlp.up_proj.weight"] == ours["model.layers.3.mlp.up_proj.weight"]).all()
    assert (written["decoder.out.weight"] == ours["lm_head.weight"]).all()
    recorded = (tmp_path / "out" / "mergekit_config.yml").read_text()
    assert "begin with 'model.layers', here 'decoder.blocks'" in recorded
    assert call("fill-missing-params", tmp_path / "whole", part, "--map", "x").exit_code == 2


def test_two_tensors_for_one_place_are_refused_and_a_map_without_names_is_told(part, tmp_path):
    write_llama(tmp_path / "whole", 1)
    words = ("fill-missing-params", tmp_path / "whole", part, "--output-dir", tmp_path / "out")
    done = call(*words, "--map", "model.layers.0.=model.layers.1.")
    assert done.exit_code == 4
    assert "2 tensors of the part are to be `model.layers.1." in done.stderr
    assert not (tmp_path / "out").exists()
    idle = call(*words, "--map", "modell.=x.")
    assert idle.exit_code == 0
    assert "`--map modell.=` has no effect" in idle.stderr


def test_paths_are_meant_literally(tmp_path):
    whole, part = write_llama(tmp_path / "a+b@c", 0), write_llama(tmp_path / "d@e+f@g", 1)
    done = call("fill-missing-params", whole, part, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == llama_tensors(0).keys()
    assert call("reproduce", tmp_path / "out").exit_code == 0


def test_shapes_that_differ_are_an_error_or_taken_from_one_of_both(tmp_path):
    tensors, config = whole_of("language_model.")
    write(tmp_path / "whole", tensors, config)
    write(tmp_path / "part", llama_tensors(5, rows=40), config_of(rows=40))
    places = str(tmp_path / "whole"), str(tmp_path / "part")
    with pytest.raises(IncompatibleModelsError, match=r"embed_tokens\.weight` is \(40, 16\), not \(32, 16\)"):
        plan_filling(*places)
    for rule, rows, unused in (("base", 32, 2), ("sub", 40, 0)):
        plan = plan_filling(*places, Filling(shapes=rule))
        [embedding] = [task.out for task in plan.tasks if "embed_tokens" in task.out.name]
        assert embedding.shape == (rows, 16)
        assert sum(len(entry.tensors) for entry in plan.leftovers) == unused
        assert json.loads(plan.texts["config.json"])["text_config"]["vocab_size"] == rows


def test_tensors_of_the_part_that_are_not_used_are_told(part, tmp_path):
    tensors, config = whole_of("language_model.")
    del tensors["language_model.lm_head.weight"]
    write(tmp_path / "whole", tensors, config)
    done = call("fill-missing-params", tmp_path / "whole", part, "--json")
    assert done.exit_code == 0, done.output
    left = json.loads(done.stdout)["report"]["left_over"]
    assert left == [{"model": 1, "reason": "the whole model has no tensor for it", "tensors": ["lm_head.weight"]}]
    assert call("fill-missing-params", tmp_path / "whole", part, "--strict", "--overwrite").exit_code == 3


def test_a_part_of_something_else_is_refused(tmp_path, part):
    write(tmp_path / "whole", VISION, {"model_type": "whole"})
    done = call("fill-missing-params", tmp_path / "whole", part)
    assert done.exit_code == 4
    assert "no tensor of the part has a name of the whole model" in done.stderr
    assert "`--prefix` or `--map`" in done.stderr


def test_a_plan_writes_nothing(part, tmp_path):
    tensors, config = whole_of("language_model.")
    write(tmp_path / "whole", tensors, config)
    done = call("fill-missing-params", tmp_path / "whole", part, "--plan")
    assert done.exit_code == 0, done.output
    assert "whole--part (not written)" in done.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["part", "whole"]


def test_between_prefixes_the_shortest_wins():
    assert shared_prefix({"w": 0}, frozenset({"a.w", "b.a.w"})) == "a."
    assert shared_prefix({"w": 0}, frozenset({"w", "a.w"})) == ""
    assert shared_prefix({"w": 0}, frozenset({"x"})) == ""
