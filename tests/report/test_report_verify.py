from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mergekit.checkpoint import Stored, open_checkpoint
from mergekit.errors import MissingModelError
from mergekit.report import Verification, verify_folder

WEIGHT = "model.layers.1.mlp.up_proj.weight"
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
END = {"id": 100, "content": "</s>", **FLAGS, "special": True}
METHODS = ("linear", "slerp", "ties", "task_arithmetic", "passthrough")
NAN = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def overwrite(stored: Stored, entry: int, raw: bytes | None = None) -> None:
    """Write other bytes from an entry on, or change the exponent of its value."""
    size = stored.spec.dtype.bits // 8
    with stored.extent.file.open("r+b") as stream:
        stream.seek(stored.extent.start + entry * size)
        old = stream.read(size)
        stream.seek(-size, 1)
        stream.write(raw or old[:-1] + bytes([old[-1] ^ 0x01]))


def change(file: Path, edit) -> None:
    value = json.loads(file.read_text("utf-8"))
    edit(value)
    file.write_text(json.dumps(value), "utf-8")


def whats(found: Verification) -> list[str]:
    assert found.ok == (not found.problems)
    return [problem.what for problem in found.problems]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize("method", METHODS)
def test_untouched_merges_pass(recipe_of, merge, method, dtype):
    recipe = recipe_of(method, dtype)
    for name, limit in (("one", 0), ("many", 50_000)):
        found = verify_folder(merge(recipe, name, shard_bytes=limit))
        assert whats(found) == []
        assert found.tensors == (18 if method == "passthrough" else 14) + 1
        assert ("index" in found.checked) == (name == "many")
        assert {"config.json", "tokenizer.json", "merge_report.json", "layer count"} <= set(found.checked)


@pytest.mark.parametrize(
    ("dtypes", "written"),
    [
        (("F16", "F16"), "float32"),
        (("F16", "F16"), "bfloat16"),
        (("BF16", "F16"), "float16"),
        (("F64", "F16"), "bfloat16"),
        (("F32", "F32"), "float64"),
        (("BF16", "BF16"), "float32"),
    ],
)
@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_merges_that_change_the_dtype_pass(make_model, merge, dtypes, written, method):
    models = [make_model(f"m{index}", index, dtype) for index, dtype in enumerate(dtypes)]
    entries = [{"model": str(model)} for model in models]
    if method == "passthrough":
        entries = entries[1:]
    found = verify_folder(merge({"merge_method": method, "models": entries, "out_dtype": written}))
    assert whats(found) == []


def test_a_parent_without_report_passes_and_says_less(make_model):
    found = verify_folder(make_model("m", 1))
    assert whats(found) == []
    assert found.tensors == 15
    assert found.bytes == sum(stored.spec.nbytes for stored in open_checkpoint(found.folder).tensors.values())
    assert "merge_report.json" not in found.checked


def test_pickled_weights_pass_with_remarks(make_model):
    import torch
    from safetensors.torch import load_file

    model = make_model("m", 1)
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save({"state_dict": {**weights, "note": "mine"}, "epoch": 3}, model / "pytorch_model.bin")
    found = verify_folder(model)
    assert (whats(found), found.tensors) == ([], len(weights))
    assert [remark.partition(": ")[0] for remark in found.remarks] == ["`pytorch_model.bin`"] * 2
    assert "`epoch`" in found.remarks[0]
    assert "`note`" in found.remarks[1]
    weights[WEIGHT][0, 0] = np.nan
    torch.save({"state_dict": weights, "epoch": 3}, model / "pytorch_model.bin")
    found = verify_folder(model)
    assert whats(found) == [f"1 of {weights[WEIGHT].numel()} entries of `{WEIGHT}` are infinite or not a number"]
    assert len(found.remarks) == 1


def test_a_merge_whose_weights_were_pickled_is_wrong(recipe_of, merge):
    import torch
    from safetensors.torch import load_file

    out = merge(recipe_of("linear"))
    torch.save({"state_dict": load_file(out / "model.safetensors"), "epoch": 3}, out / "pytorch_model.bin")
    (out / "model.safetensors").unlink()
    found = verify_folder(out)
    assert any("`epoch`" in what for what in whats(found))
    assert found.remarks == ()


def test_no_folder(tmp_path):
    with pytest.raises(MissingModelError):
        verify_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
def test_a_changed_weight_is_found(recipe_of, merge, dtype):
    stored = open_checkpoint(merge(recipe_of("linear", dtype))).tensors[WEIGHT]
    good = stored.extent.file.read_bytes()
    for entry in (0, 4095, 4096, 6143):
        overwrite(stored, entry)
        (what,) = whats(verify_folder(stored.extent.file.parent))
        assert what.startswith(f"the values of `{WEIGHT}` have changed")
        stored.extent.file.write_bytes(good)


def test_every_stripe_of_a_large_tensor_is_read(make_model, merge):
    large = np.random.default_rng(0).standard_normal((1100, 1000)).astype(np.float32)
    models = [make_model(f"m{seed}", seed, "BF16", extra={"model.large.weight": large * seed}) for seed in (1, 2)]
    out = merge({"merge_method": "linear", "models": [{"model": str(model)} for model in models]})
    assert whats(verify_folder(out)) == []
    overwrite(open_checkpoint(out).tensors["model.large.weight"], 1_099_999)
    (what,) = whats(verify_folder(out))
    assert what.startswith("the values of `model.large.weight` have changed")


def test_one_ulp_is_found(recipe_of, merge):
    out = merge(recipe_of("linear", "BF16"))
    stored = open_checkpoint(out).tensors[WEIGHT]
    raw = stored.extent.file.read_bytes()[stored.extent.start : stored.extent.start + 2]
    overwrite(stored, 0, bytes([raw[0] ^ 1, raw[1]]))
    (what,) = whats(verify_folder(out))
    assert "have changed" in what


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_entries_that_are_no_numbers_are_found(recipe_of, merge, dtype, value):
    out = merge(recipe_of("ties", dtype))
    stored = open_checkpoint(out).tensors[WEIGHT]
    raw = np.float32(value).tobytes()[2:] if dtype == "BF16" else NAN[dtype](value).tobytes()
    for entry in (5, 6000):
        overwrite(stored, entry, raw)
    for _ in range(2):
        (what,) = whats(verify_folder(out))
        assert what == f"2 of 6144 entries of `{WEIGHT}` are infinite or not a number"
        (out / "merge_report.json").unlink(missing_ok=True)


def test_large_float64_values_are_numbers(make_model, merge):
    model = make_model("m", 1, "F64")
    overwrite(open_checkpoint(model).tensors[WEIGHT], 7, np.float64(1e300).tobytes())
    assert whats(verify_folder(model)) == []
    assert whats(verify_folder(merge({"merge_method": "passthrough", "models": [{"model": str(model)}]}))) == []


def test_another_machine_may_round_otherwise(recipe_of, merge):
    out = merge(recipe_of("linear"))

    def elsewhere(factor):
        def edit(report):
            report["machine"] = "another"
            report["tensors"][3]["norm"] *= factor

        return edit

    change(out / "merge_report.json", elsewhere(1 + 1e-8))
    assert whats(verify_folder(out)) == []
    change(out / "merge_report.json", elsewhere(1 + 1e-5))
    (what,) = whats(verify_folder(out))
    assert "have changed" in what


def test_without_checksums_norms_are_compared(recipe_of, merge):
    """Reports of older versions have none."""
    out = merge(recipe_of("linear"))
    change(out / "merge_report.json", lambda report: [entry.pop("checksum") for entry in report["tensors"]])
    assert whats(verify_folder(out)) == []
    overwrite(open_checkpoint(out).tensors[WEIGHT], 0)
    (what,) = whats(verify_folder(out))
    assert "their norm is" in what


def test_values_that_change_places_are_found(recipe_of, merge):
    """A norm does not see that; a checksum does, also of what is no floating-point number."""
    out = merge(recipe_of("linear"))
    stored = open_checkpoint(out).tensors[WEIGHT]
    raw = stored.extent.file.read_bytes()[stored.extent.start : stored.extent.stop]
    overwrite(stored, 0, raw[4:8] + raw[:4] + raw[8:])
    (what,) = whats(verify_folder(out))
    assert "their checksum is" in what


def test_another_number_of_parameters_is_found(recipe_of, merge):
    out = merge(recipe_of("linear"))
    change(out / "merge_report.json", lambda report: report["totals"].update(parameters=7))
    (what,) = whats(verify_folder(out))
    assert what.startswith("the model has ")
    assert what.endswith(" parameters")


def test_a_truncated_file_is_found(recipe_of, merge):
    out = merge(recipe_of("linear"), shard_bytes=50_000)
    shard = sorted(out.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    found = whats(verify_folder(out))
    assert any("cut short" in what for what in found)
    assert any(f"`{shard.name}`, a file of the report" in what for what in found)
    assert any(what.startswith("tensors of the report are not there") for what in found)


def test_a_removed_shard_is_found(recipe_of, merge):
    out = merge(recipe_of("linear"), shard_bytes=50_000)
    shard = sorted(out.glob("*.safetensors"))[-1]
    shard.unlink()
    found = whats(verify_folder(out))
    assert f"missing shards: `{shard.name}`" in found
    assert verify_folder(out).tensors > 0
    (out / "merge_report.json").unlink()
    assert whats(verify_folder(out)) == [f"missing shards: `{shard.name}`"]


def test_every_bad_file_is_named(recipe_of, merge):
    out = merge(recipe_of("linear"), shard_bytes=50_000)
    shards = sorted(out.glob("*.safetensors"))[:2]
    for shard in shards:
        shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    places = [str(problem.place) for problem in verify_folder(out).problems]
    assert all(str(shard) in places for shard in shards)


def test_a_wrong_index_is_found(recipe_of, merge):
    out = merge(recipe_of("linear"), shard_bytes=50_000)
    index = out / "model.safetensors.index.json"
    good = index.read_text()
    files = sorted(file.name for file in out.glob("*.safetensors"))

    def swap(value):
        own = value["weight_map"][WEIGHT]
        value["weight_map"][WEIGHT] = next(file for file in files if file != own)

    change(index, swap)
    (what,) = whats(verify_folder(out))
    assert "the index promises" in what
    assert WEIGHT in what
    index.write_text(good)
    change(index, lambda value: value["weight_map"].pop(WEIGHT))
    found = whats(verify_folder(out))
    assert any("does not name them" in what and WEIGHT in what for what in found)
    index.write_text(good)
    change(index, lambda value: value["metadata"].update(total_size=1))
    (what,) = whats(verify_folder(out))
    assert what == "`metadata.total_size` of the index is 1"
    index.unlink()
    (what,) = whats(verify_folder(out))
    assert "there is no `model.safetensors.index.json`" in what


def test_a_foreign_file_of_weights_is_found(recipe_of, merge, make_model):
    out = merge(recipe_of("linear"))
    stale = make_model("other", 9) / "model.safetensors"
    (out / "model.safetensors").write_bytes(stale.read_bytes())
    found = whats(verify_folder(out))
    assert any("bytes" in what or "another header" in what for what in found)
    assert sum("have changed" in what for what in found) == 15


def test_a_wrong_layer_count_is_found(recipe_of, merge):
    out = merge(recipe_of("linear"))
    for layers in (2, 4, 30, 0):
        change(out / "config.json", lambda config, layers=layers: config.update(num_hidden_layers=layers))
        assert whats(verify_folder(out)) == [f"`num_hidden_layers` says {layers} layers, `model.layers` has 3"]
    (out / "merge_report.json").unlink()
    assert whats(verify_folder(out)) == ["`num_hidden_layers` says 0 layers, `model.layers` has 3"]


def test_layers_that_config_does_not_count_are_fine(make_model):
    model = make_model("m", 1, vision=True)
    assert whats(verify_folder(model)) == []
    change(model / "config.json", lambda config: config.update(vision_config={"depth": 3}))
    assert whats(verify_folder(model)) == ["`vision_config.depth` says 3 layers, `vision_tower.layers` has 2"]
    change(model / "config.json", lambda config: config.update(vision_config={"depth": 2}, num_hidden_layers=4))
    assert whats(verify_folder(model)) == ["`num_hidden_layers` says 4 layers, `model.layers` has 3"]


def test_another_count_that_means_something_else_is_fine(recipe_of, merge):
    out = merge(recipe_of("linear"))
    change(out / "config.json", lambda config: config.update(max_window_layers=28, vision_config={"depth": 7}))
    assert whats(verify_folder(out)) == []
    change(out / "config.json", lambda config: config.update(num_hidden_layers=4))
    assert whats(verify_folder(out)) == ["`num_hidden_layers` says 4 layers, `model.layers` has 3"]


def test_a_broken_config_is_found(recipe_of, merge):
    out = merge(recipe_of("linear"))
    for text in (b"", b"{", b"[]", b"[" * 100_000, b"\xff"):
        (out / "config.json").write_bytes(text)
        found = verify_folder(out)
        assert len(found.problems) == 1
        assert "config.json" in found.problems[0].what
        assert found.tensors == 15


def test_a_head_that_loaders_ignore_is_found(make_model, merge):
    models = [make_model(f"m{seed}", seed, tied=True) for seed in range(2)]
    entries = [{"model": str(model)} for model in models]
    recipe = {"merge_method": "linear", "models": entries}
    assert whats(verify_folder(merge(recipe, "alike"))) == []
    entries[0]["parameters"] = {"weight": [{"filter": "lm_head", "value": 0.1}, {"value": 1.0}]}
    (what,) = whats(verify_folder(merge(recipe, "apart")))
    assert what.startswith("`lm_head.weight` differs from `model.embed_tokens.weight`, and loaders ignore it")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda value: value["model"]["vocab"].update({"</s>": 100, "u": 127}), None),
        (lambda value: value["model"]["vocab"].update(x=128), "token 'x' has the id 128, but there are 128 rows"),
        (lambda value: value["model"]["vocab"].update(x=4000), "token 'x' has the id 4000"),
        (lambda value: value.pop("added_tokens"), None),
        (lambda value: value["added_tokens"].append({**END, "id": 101, "content": "a", "single_word": 1}), "a flag of"),
        (lambda value: value["added_tokens"][0].update(content=""), None),
        (lambda value: value.pop("model"), "`model` is not an object"),
        (lambda value: value["model"].update(vocab={"a": None}), "the id of token 'a' is None"),
        (lambda value: value.update(added_tokens=3), "`added_tokens` is not a list"),
        (lambda value: value["model"].update(merges=[["x", "y"]]), "`tokenizers` cannot load it"),
        (lambda value: value["model"].update(merges=[["t1", "0"]]), "`tokenizers` cannot load it"),
        (lambda value: value.update(normalizer={"type": "Lowercase"}), None),
    ],
)
def test_the_tokenizer_loads_and_its_ids_have_rows(make_model, edit, expected):
    model = make_model("m", 1)
    change(model / "tokenizer.json", edit)
    found = whats(verify_folder(model))
    assert [expected] * len(found) == ([] if expected is None else [expected])
    assert all(what.startswith(expected) for what in found)


def test_a_tokenizer_that_is_not_json_is_found(make_model):
    model = make_model("m", 1)
    (model / "tokenizer.json").write_text("{'a': 1}")
    (what,) = whats(verify_folder(model))
    assert what.startswith("not valid JSON")
    (model / "tokenizer.json").write_bytes(b"\xff")
    (what,) = whats(verify_folder(model))
    assert what.startswith("tokenizer.json cannot be read")


def test_a_merge_without_effect_is_found(recipe_of, merge):
    recipe = recipe_of("task_arithmetic")
    recipe["parameters"] = {"lambda": 0.0}
    (what,) = whats(verify_folder(merge(recipe, "same")))
    assert what.startswith("the model equals its base everywhere")
    recipe["parameters"] = {"lambda": [{"filter": "model.norm", "value": 1.0}, {"value": 0.0}]}
    assert whats(verify_folder(merge(recipe, "almost"))) == []


def test_a_base_of_zeros_does_not_hide_a_difference(make_model, merge):
    base = make_model("base", 0)
    embedding = open_checkpoint(base).tensors["model.embed_tokens.weight"]
    overwrite(embedding, 0, bytes(embedding.spec.nbytes))
    model = make_model("model", 1)
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": [{"model": str(model)}]}
    recipe["parameters"] = {"weight": [{"filter": "embed_tokens", "value": 1.0}, {"value": 0.0}]}
    assert whats(verify_folder(merge(recipe, "differs"))) == []
    recipe["parameters"] = {"weight": 0.0}
    assert len(whats(verify_folder(merge(recipe, "equals")))) == 1


SPOILT = (
    lambda report: report.clear(),
    lambda report: report.update(format=2),
    lambda report: report.pop("totals"),
    lambda report: report.update(options=3),
    lambda report: report.update(tensors=5),
    lambda report: report.update(tensors=["a"]),
    lambda report: report.update(settings=[]),
    lambda report: report["shards"][0].update(bytes=float("inf")),
    lambda report: report["tensors"][0].update(shape="abc"),
    lambda report: report["tensors"][0].update(norm=[]),
    lambda report: report["tensors"][0].update(checksum="x"),
    lambda report: report["tensors"][0].update(checksum=7),
    lambda report: report["tensors"][0].update(settings="x"),
)


def test_a_spoilt_report_is_one_problem(recipe_of, merge):
    out = merge(recipe_of("linear"))
    good = (out / "merge_report.json").read_text("utf-8")
    for edit in SPOILT:
        (out / "merge_report.json").write_text(good, "utf-8")
        change(out / "merge_report.json", edit)
        (what,) = whats(verify_folder(out))
        assert what.startswith("merge_report.json is no report of this version: it ")


def test_a_report_that_is_not_json_is_one_problem(recipe_of, merge):
    out = merge(recipe_of("linear"))
    (out / "merge_report.json").write_text("# report")
    (what,) = whats(verify_folder(out))
    assert what.startswith("merge_report.json cannot be read")


def test_a_report_of_other_tensors_is_found(recipe_of, merge):
    out = merge(recipe_of("linear"))

    def edit(report):
        report["tensors"][0]["dtype"] = "F16"
        report["tensors"][1]["shape"].append(1)
        report["tensors"][2]["name"] = "model.other"
        report["shards"][0]["header_sha256"] = "0"

    change(out / "merge_report.json", edit)
    found = whats(verify_folder(out))
    assert "`model.embed_tokens.weight` is F32 [128, 64]" in found
    assert sum(" is F32 " in what for what in found) == 2
    assert "tensors of the report are not there: `model.other`" in found
    assert any(what.startswith("tensors are not in the report: `model.") for what in found)
    assert "the file has another header than the report says" in found


def test_an_empty_folder_is_one_problem(tmp_path):
    found = verify_folder(tmp_path)
    assert whats(found) == ["no config.json in the folder"]
    assert (found.tensors, found.bytes) == (0, 0)
