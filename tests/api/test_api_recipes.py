"""Merges of recipes from Python: into a folder, as a plan, tensor by tensor."""

import json
import tracemalloc
import warnings
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_checkpoints import llama_config, octets, read_model, write_hollow, write_model

import mergekit
from mergekit import MergeConfiguration, MergeOptions, iter_merged, merge_models, plan_merge
from mergekit.errors import BudgetError, DeviceError, NonFiniteError, OutputError, RecipeError

SUM = """
from mergekit.methods import merge_method

@merge_method(title="Sum", base="ignored")
def total(models):
    return models.sum(0)
"""

OPEN = Path("/proc/self/fd")
"""The open files of this process, where the system shows them."""


def written():
    return list(Path().iterdir())


def linear(models, **more):
    entries = [{"model": str(models / name), "parameters": {"weight": weight}} for name, weight in (("a", 1), ("b", 3))]
    return {"merge_method": "linear", "models": entries, **more}


def ties(models, **more):
    entries = [{"model": str(models / name)} for name in "abc"]
    parameters = {"weight": 0.5, "density": [0.3, 0.9]}
    return {
        "merge_method": "ties",
        "base_model": str(models / "base"),
        "models": entries,
        "parameters": parameters,
        **more,
    }


def same(left, right):
    assert list(left) == list(right)
    assert all(octets(left[name]) == octets(right[name]) for name in left)


def test_every_form_of_a_recipe_merges_the_same(models, tmp_path):
    content = linear(models)
    text = "# mine\n" + yaml.safe_dump(content)
    (tmp_path / "merge.yml").write_text(text)
    mapping = {**content, "models": tuple({**entry, "model": Path(entry["model"])} for entry in content["models"])}
    mapping["models"][1]["parameters"] = {"weight": np.float32(3)}
    forms = {
        "str": "merge.yml",
        "path": tmp_path / "merge.yml",
        "text": text,
        "flow": str(content),
        "mapping": mapping,
        "configuration": MergeConfiguration.from_yaml(text),
    }
    for name, form in forms.items():
        merge_models(form, tmp_path / name)
        same(read_model(tmp_path / name), read_model(tmp_path / "str"))
    kept = {name: (tmp_path / name / "mergekit_config.yml").read_text() for name in forms}
    assert kept["str"] == kept["path"] == kept["text"] == kept["configuration"] == text
    assert yaml.safe_load(kept["mapping"]) == content


def test_the_report_is_that_of_the_folder(models):
    report = merge_models(linear(models), "out")
    assert report == json.loads(Path("out/merge_report.json").read_text())
    assert report["method"] == "linear"


def test_a_folder_is_replaced_only_on_request(models):
    merge_models(linear(models), "out")
    with pytest.raises(OutputError, match="not empty"):
        merge_models(ties(models), "out")
    assert merge_models(ties(models), "out", options=MergeOptions(overwrite=True))["method"] == "ties"


def test_warnings_point_to_the_caller_and_are_in_the_report(models):
    recipe = linear(models, parameters={"int8_mask": True})
    with pytest.warns(UserWarning, match="`int8_mask` is not read by linear") as caught:
        report = merge_models(recipe, "out")
    assert [warning.filename for warning in caught] == [__file__]
    assert [warning["what"] for warning in report["warnings"]] == [str(caught[0].message).partition("\n")[0]]
    with pytest.warns(UserWarning, match="int8_mask") as caught:
        iter_merged(recipe)
    assert caught[0].filename == __file__


def test_warnings_can_stop_a_merge(models):
    recipe = linear(models, parameters={"int8_mask": True})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="int8_mask"):
            merge_models(recipe, "out")
    with pytest.raises(RecipeError, match="int8_mask"):
        merge_models(recipe, "out", options=MergeOptions(strict=True))
    assert written() == []


def test_progress_is_told(models):
    class Watch:
        told = 0

        def planned(self, plan):
            assert not self.told
            self.total = plan.read_bytes + plan.write_bytes

        def advance(self, nbytes):
            self.told += nbytes

    watch = Watch()
    merge_models(linear(models), "out", options=MergeOptions(num_threads=1), progress=watch)
    assert watch.told == watch.total > 0


@pytest.mark.parametrize("call", [plan_merge, iter_merged, lambda recipe: merge_models(recipe, "out")])
def test_all_mistakes_are_in_one_error(models, call):
    recipe = linear(models, parameters={"wieght": 1, "normalize": "perhaps"})
    recipe["models"][0]["model"] = "nowhere"
    with pytest.raises(RecipeError) as error:
        call(recipe)
    places = [str(problem.place) for problem in error.value.problems]
    assert len(places) == 3
    assert places[0].startswith("models[0].model (<recipe>:")
    assert "try `weight`" in str(error.value)
    assert written() == []


def test_lines_are_those_of_the_file(models, tmp_path):
    (tmp_path / "merge.yml").write_text("\n\n" + yaml.safe_dump(linear(models, dtype="bfloat15"), sort_keys=False))
    with pytest.raises(RecipeError, match=r"at dtype \(merge.yml:11\)"):
        plan_merge("merge.yml")


@pytest.mark.parametrize("recipe", ["nowhere.yml", Path("nowhere.yml"), "x" * 5000, "."])
def test_a_file_that_cannot_be_read(recipe):
    with pytest.raises(RecipeError, match="the recipe cannot be read: "):
        plan_merge(recipe)


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "merge.yml").write_bytes(b"merge_method: linear\n# \xff")
    with pytest.raises(RecipeError, match=r"byte 0xff is not UTF-8\n  at merge.yml:2"):
        plan_merge("merge.yml")


@pytest.mark.parametrize("recipe", [None, 3, b"merge_method: linear", ["merge_method"]])
def test_what_is_no_recipe(recipe):
    with pytest.raises(TypeError, match="a recipe is a path, YAML text, a mapping or a MergeConfiguration, not"):
        plan_merge(recipe)


def test_a_plan_reads_no_weight(tmp_path):
    shapes = {"model.embed_tokens.weight": (1 << 16, 1 << 12), "model.norm.weight": (1 << 12,)}
    for name in "ab":
        write_hollow(tmp_path / name, shapes, llama_config(layers=0))
    plan = plan_merge({"merge_method": "linear", "models": [{"model": name} for name in "ab"]})
    assert isinstance(plan, mergekit.Plan)
    assert plan.write_bytes == plan.read_bytes // 2 == 2 * ((1 << 28) + (1 << 12))


def test_a_plan_is_shown_in_a_line(models):
    plan = plan_merge(linear(models), options=MergeOptions(max_memory="1GB"))
    counts = f"read_bytes {plan.read_bytes}, write_bytes {plan.write_bytes}, memory {plan.memory.peak}"
    assert repr(plan) == f"<Plan linear: tensors {len(plan.tasks)}, {counts}, warnings 0>"


def test_options_mean_what_the_flags_mean(models, tmp_path):
    def merged(name, **options):
        report = merge_models(linear(models), tmp_path / name, options=MergeOptions(**options))
        return report, {file.name for file in (tmp_path / name).iterdir()}

    (models / "a" / "tokenizer.json").write_text("{}")
    try:
        plain, files = merged("plain")
        assert {"README.md", "tokenizer.json", "model.safetensors"} <= files
        assert plain["seed"] == 0
        assert "README.md" not in merged("cardless", write_model_card=False)[1]
        assert "tokenizer.json" not in merged("untokenized", copy_tokenizer=False)[1]
        assert "model-00002-of-00002.safetensors" in merged("sharded", out_shard_size=30_000)[1]
        assert merged("seeded", random_seed=5)[0]["seed"] == 5
    finally:
        (models / "a" / "tokenizer.json").unlink()
    assert plan_merge(linear(models), options=MergeOptions(num_threads=3)).memory.workers == 3
    with pytest.raises(BudgetError):
        plan_merge(linear(models), options=MergeOptions(max_memory=1 << 20))
    with pytest.raises(DeviceError):
        iter_merged(linear(models), options=MergeOptions(device="abacus"))
    torch_merged = dict(iter_merged(linear(models), options=MergeOptions(device="cpu"), framework="torch"))
    fused = dict(iter_merged(linear(models), framework="torch"))
    assert all(torch.allclose(torch_merged[name].float(), fused[name].float(), rtol=0.01) for name in fused)


def test_code_runs_only_if_it_is_allowed(models, tmp_path):
    (tmp_path / "mine.py").write_text(SUM)
    recipe = {**linear(models), "merge_method": "./mine.py:total"}
    for entry in recipe["models"]:
        del entry["parameters"]
    with pytest.raises(RecipeError, match="is Python code"):
        plan_merge(recipe)
    merged = dict(iter_merged(recipe, options=MergeOptions(allow_code=True), framework="torch"))
    parts = [read_model(models / name)["model.norm.weight"].float() for name in "ab"]
    assert torch.equal(merged["model.norm.weight"], (parts[0] + parts[1]).to(torch.bfloat16))


@pytest.mark.parametrize(("make", "dtype"), [(linear, None), (linear, "float32"), (linear, "float64"), (ties, None)])
def test_tensors_are_those_of_the_folder(models, make, dtype):
    recipe = make(models, dtype=dtype)
    merge_models(recipe, "out")
    written = read_model(Path("out"))
    tensors = dict(iter_merged(recipe, framework="torch"))
    arrays = dict(iter_merged(recipe))
    assert tensors.keys() == arrays.keys() == written.keys()
    for name, tensor in written.items():
        assert octets(tensors[name]) == octets(tensor)
        widened = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert arrays[name].dtype == widened.numpy().dtype
        assert np.array_equal(arrays[name], widened.numpy())
    assert arrays["model.positions"].dtype == np.int64


def test_tensors_come_in_the_order_of_the_files(models):
    plan = plan_merge(linear(models))
    assert [name for name, _ in iter_merged(linear(models))] == [task.out.name for task in plan.tasks]


def test_tensors_can_be_changed(models):
    for _, array in iter_merged(linear(models)):
        array += 1
    for _, tensor in iter_merged(linear(models), framework="torch"):
        tensor += 1


def test_dtypes_that_numpy_lacks(tmp_path):
    stored = {"model.embed_tokens.weight": torch.tensor([[1.5, -2.0]]).to(torch.float8_e4m3fn)}
    write_model(tmp_path / "a", stored, llama_config(layers=0))
    recipe = {"merge_method": "passthrough", "models": [{"model": "a"}]}
    ((_, array),) = iter_merged(recipe)
    assert array.dtype == np.uint8
    assert array.tolist() == stored["model.embed_tokens.weight"].view(torch.uint8).tolist()
    ((_, tensor),) = iter_merged(recipe, framework="torch")
    assert octets(tensor) == octets(stored["model.embed_tokens.weight"])


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    shapes = {f"model.layers.{layer}.mlp.up_proj.weight": (1 << 11, 1 << 11) for layer in range(8)}
    for name in "ab":
        write_hollow(tmp_path / name, shapes, llama_config(layers=8))
    tensors = iter_merged(
        {"merge_method": "linear", "models": [{"model": name} for name in "ab"]}, options=MergeOptions(num_threads=1)
    )
    next(tensors)
    tracemalloc.start()
    try:
        count = sum(1 for _ in tensors)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 7
    assert peak < 4 * (4 << 22)  # one as float32 with the one before, and what is made on the way


def test_leaving_early_leaves_no_file_open(models):
    tensors = iter_merged(linear(models))
    before = len(list(OPEN.iterdir())) if OPEN.is_dir() else None
    next(tensors)
    tensors.close()
    assert before is None or len(list(OPEN.iterdir())) == before
    assert written() == []


def test_what_is_not_finite_is_refused(models, tmp_path):
    recipe = linear(models)
    broken = read_model(models / "a")
    broken["model.norm.weight"][3] = float("nan")
    write_model(tmp_path / "broken", broken, llama_config(layers=2, dtype=torch.bfloat16))
    recipe["models"][0]["model"] = str(tmp_path / "broken")
    tensors = iter_merged(recipe)
    assert next(tensors)[0] == "model.embed_tokens.weight"
    with pytest.raises(
        NonFiniteError, match=r"1 of 32 entries of `model\.norm\.weight`.*\n.*broken/model\.safetensors"
    ):
        deque(tensors)


def test_an_unknown_framework_is_refused_at_once(models):
    with pytest.raises(ValueError, match="'jax': expected 'numpy' or 'torch'"):
        iter_merged(linear(models), framework="jax")
