"""A merge held against the models that went into it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from mergekit.checkpoint import Files, open_checkpoint
from mergekit.errors import VerificationError
from mergekit.origin import read_origin
from mergekit.report import verify_folder
from mergekit.report.claims import read_claims
from mergekit.report.parents import Parents

WEIGHT = "model.layers.1.mlp.up_proj.weight"
METHODS = ("linear", "slerp", "ties", "task_arithmetic", "passthrough")


def checked(out, full=True):
    """What comparing with the parents finds."""
    claims = read_claims(json.loads((out / "merge_report.json").read_text()))
    with Files() as files:
        parents = Parents(read_origin(out).planned(), open_checkpoint(out).tensors, files)
        return [problem.what for problem in (*parents.wrong_distances(claims, full), *parents.the_same())]


def nudge(model, name=WEIGHT, entry=0):
    """Change one entry of a model so that only its bytes tell."""
    stored = open_checkpoint(model).tensors[name]
    size = stored.spec.dtype.bits // 8
    with stored.extent.file.open("r+b") as stream:
        stream.seek(stored.extent.start + entry * size)
        old = stream.read(size)
        stream.seek(-size, 1)
        stream.write(old[:-1] + bytes([old[-1] ^ 0x01]))


def edited(out, edit):
    report = json.loads((out / "merge_report.json").read_text())
    edit(report)
    (out / "merge_report.json").write_text(json.dumps(report))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
@pytest.mark.parametrize("method", METHODS)
def test_untouched_merges_are_as_far_as_reported(recipe_of, merge, method, dtype):
    out = merge(recipe_of(method, dtype))
    assert checked(out) == []
    assert checked(out, full=False) == []


@pytest.mark.parametrize("written", ["float32", "bfloat16", "float16", "float64"])
def test_in_other_dtypes_too(recipe_of, merge, written):
    assert checked(merge({**recipe_of("ties"), "out_dtype": written})) == []


def test_a_distance_that_is_not_the_reported_one(recipe_of, merge):
    out = merge(recipe_of("ties"))

    def lie(report):
        next(entry for entry in report["tensors"] if entry["name"] == WEIGHT)["relative_distance"] *= 1.001

    edited(out, lie)
    (what,) = checked(out)
    assert what.startswith(f"`{WEIGHT}` is 0.")
    assert "of the norm away from" in what


def test_a_parent_whose_values_changed(recipe_of, merge):
    recipe = recipe_of("ties")
    out = merge(recipe)
    nudge(Path(recipe["base_model"]))
    (what,) = checked(out)
    assert what.startswith(f"`{WEIGHT}` is 0.")
    assert str(recipe["base_model"]) in what


def test_a_copy_that_is_none(recipe_of, merge):
    out = merge(recipe_of("passthrough"))
    nudge(out, entry=6000)
    (what,) = checked(out)
    assert what.startswith(f"`{WEIGHT}` was copied from ")


def test_parents_that_are_computed(make_model, merge):
    """An adapter on a base, and a pickle whose matrices are transposed: what is compared is what was merged."""
    base, other = make_model("base", 1), make_model("other", 2)
    weights = {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in
               load_file(other / "model.safetensors").items()}  # fmt: skip
    torch.save(weights, other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    adapter = base.with_name("adapter")
    adapter.mkdir()
    random = np.random.default_rng(0)
    stem = "base_model.model.model.layers.1.mlp.up_proj.lora_"
    factors = {f"{stem}A.weight": (2, 64), f"{stem}B.weight": (96, 2)}
    save_file({name: random.standard_normal(shape).astype(np.float32) for name, shape in factors.items()},
              adapter / "adapter_model.safetensors")  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    models = [{"model": f"{base}+{adapter}", "parameters": {"weight": 1}}, {"model": str(other)}]
    models[1]["parameters"] = {"weight": 2}
    out = merge({"merge_method": "linear", "models": models})
    assert checked(out) == []
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 5}))
    (what,) = checked(out)
    assert what.startswith(f"`{WEIGHT}` is ")


@pytest.mark.parametrize("full", [True, False])
def test_a_merge_that_equals_one_of_its_parents(make_model, merge, full):
    models = [{"model": str(make_model(f"m{seed}", seed)), "parameters": {"weight": seed}} for seed in (0, 1)]
    (what,) = checked(merge({"merge_method": "linear", "models": models}), full)
    assert what == f"the model equals {models[1]['model']} everywhere: the merge had no effect"


def test_one_tensor_that_differs_is_enough(make_model, merge):
    """Also one that is not looked at first."""
    models = [{"model": str(make_model(f"m{seed}", seed, layers=12))} for seed in (0, 1)]
    models[0]["parameters"] = {"weight": [{"filter": "layers.7.mlp.up_proj", "value": 1.0}, {"value": 0.0}]}
    models[1]["parameters"] = {"weight": 1.0}
    assert checked(merge({"merge_method": "linear", "models": models}), full=False) == []


def test_copies_and_stacks_are_no_merges_without_effect(make_model, merge):
    model = make_model("m", 1)
    assert checked(merge({"merge_method": "passthrough", "models": [{"model": str(model)}]}, "copy")) == []
    pieces = [{"sources": [{"model": str(model), "layer_range": span}]} for span in ([0, 2], [1, 3])]
    assert checked(merge({"merge_method": "passthrough", "slices": pieces}, "stack")) == []


def test_a_tie_that_was_not_planned(recipe_of, merge):
    out = merge(recipe_of("linear"))
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    found = [problem.what for problem in verify_folder(out, plan=read_origin(out).planned()).problems]
    assert "config.json ties both" in found
    assert any("loaders ignore it" in what for what in found)


def test_a_parent_that_is_gone_is_told_apart_from_one_that_changed(recipe_of, merge):
    recipe = recipe_of("linear")
    out = merge(recipe)
    weights = Path(recipe["models"][0]["model"]) / "model.safetensors"
    assert read_origin(out).changes() == ()
    content = weights.read_bytes()
    weights.write_bytes(content + b"\0")
    (change,) = read_origin(out).changes()
    assert change.what.endswith(f"the file has {len(content) + 1:,} bytes")
    weights.write_bytes(content.replace(b"layers.1.", b"layers.9.", 1))
    (change,) = read_origin(out).changes()
    assert change.what.endswith("the file has another header than it had then")
    weights.unlink()
    (change,) = read_origin(out).changes()
    assert change.what.endswith("the file is not there any more")
    with pytest.raises(VerificationError, match="is not where it was"):
        read_origin(out).planned()


def test_relative_names_are_found_from_anywhere(make_model, merge, monkeypatch, tmp_path):
    models = [make_model(f"m{seed}", seed) for seed in (1, 2)]
    monkeypatch.chdir(tmp_path)
    out = merge({"merge_method": "linear", "models": [{"model": model.name} for model in models]})
    monkeypatch.chdir("/")
    assert checked(out) == []


SPOILT = {
    "there is no recipe in the folder": lambda out: (out / "mergekit_config.yml").unlink(),
    "is not the recipe of": lambda out: (out / "mergekit_config.yml").write_text("merge_method: linear\n"),
    "the report cannot be read": lambda out: (out / "merge_report.json").write_text("{"),
    "does not say `format: 1`": lambda out: edited(out, lambda report: report.update(format=2)),
    "ValueError `shard_bytes` is '1'": lambda out: edited(
        out, lambda report: report["options"].update(shard_bytes="1")
    ),
    "ValueError `seed` is None": lambda out: edited(out, lambda report: report.update(seed=None)),
    "does not tell how to merge again": lambda out: edited(out, lambda report: report["parents"].pop()),
    "KeyError 'folder'": lambda out: edited(out, lambda report: report["parents"][0].pop("folder")),
    "TypeError": lambda out: edited(out, lambda report: report["options"].update(raw={"x": 1})),
}


@pytest.mark.parametrize("what", SPOILT)
def test_an_origin_that_cannot_be_read(recipe_of, merge, what):
    out = merge(recipe_of("linear"))
    SPOILT[what](out)
    with pytest.raises(VerificationError) as caught:
        read_origin(out)
    assert what in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_every_input_tensor_is_in_the_output_or_left_over_with_a_reason(make_model, recipe_of, merge, method):
    """Also one that only one of the models has."""
    recipe = recipe_of(method)
    extra = make_model("extra", 7, extra={"rotary.inv_freq": np.ones(4, np.float32)})
    entries = recipe.get("models") or [source for piece in recipe["slices"] for source in piece["sources"]]
    entries[0]["model"] = str(extra)
    report = json.loads((merge(recipe) / "merge_report.json").read_text())
    used = {(source["model"], source["tensor"]) for entry in report["tensors"] for source in entry["sources"]}
    assert all(entry["reason"] for entry in report["left_over"])
    left = {(entry["model"], name) for entry in report["left_over"] for name in entry["tensors"]}
    there = {
        (index, name)
        for index, parent in enumerate(report["parents"])
        for name in open_checkpoint(Path(parent["folder"])).tensors
    }
    assert used | left == there
    assert not used & left
