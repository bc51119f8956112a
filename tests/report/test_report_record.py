from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from mergekit.merging import merge_recipe
from mergekit.plan import plan_merge
from mergekit.plan.fingerprint import header_hash, recipe_hash
from mergekit.report import headline, merge_report


@dataclass
class Told:
    task: int
    norm: float = 3.0
    distance: float = 1.0
    reference: float = 2.0
    broken: int = 0
    checksum: int = 0


def written(folder: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "merge_report.json").read_text("utf-8"), parse_constant=refuse)


def by_name(report: dict) -> dict[str, dict]:
    return {entry["name"]: entry for entry in report["tensors"]}


def test_the_report_says_what_went_in(recipe_of, merge):
    recipe = recipe_of("ties")
    report = written(merge(recipe))
    assert (report["format"], report["method"], report["seed"]) == (1, "ties", 0)
    assert report["recipe_sha256"] == recipe_hash(yaml.safe_dump(recipe, sort_keys=False))
    assert [parent["role"] for parent in report["parents"]] == [["base", "donor"], ["merged"], ["merged"]]
    folder = Path(str(recipe["base_model"]))
    file = folder / "model.safetensors"
    assert report["parents"][0] == {
        "model": str(folder),
        "role": ["base", "donor"],
        "folder": str(folder.resolve()),
        "files": [
            {"name": "model.safetensors", "bytes": file.stat().st_size, "header_sha256": header_hash(file)},
        ],
    }


def test_the_report_says_what_came_out(recipe_of, merge):
    recipe = recipe_of("task_arithmetic")
    out = merge(recipe, shard_bytes=60_000)
    report = written(out)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 2
    assert report["shards"] == [
        {"file": file.name, "bytes": file.stat().st_size, "header_sha256": header_hash(file)} for file in files
    ]
    tensors = {name: array for file in files for name, array in load_file(file).items()}
    base = load_file(Path(str(recipe["base_model"])) / "model.safetensors")
    size = sum(array.nbytes for array in tensors.values())
    assert report["totals"] == {
        "tensors": len(tensors),
        "parameters": size // 4,
        "bytes_read": 3 * size,
        "bytes_written": size,
        "shards": len(files),
    }
    assert by_name(report).keys() == tensors.keys()
    for name, entry in by_name(report).items():
        array, origin = tensors[name].astype(np.float64), base[name].astype(np.float64)
        assert (entry["dtype"], entry["shape"], entry["non_finite"]) == ("F32", list(array.shape), 0)
        assert entry["sources"] == [{"model": index, "tensor": name} for index in range(3)]
        assert entry["norm"] == pytest.approx(np.linalg.norm(array), rel=1e-6)
        relative = np.linalg.norm(array - origin) / np.linalg.norm(origin)
        assert entry["relative_distance"] == pytest.approx(relative, rel=1e-5)


def test_equal_settings_are_written_once(recipe_of, merge):
    report = written(merge(recipe_of("ties")))
    parameters = {"weight": [0.7, 0.4], "density": [1.0, 1.0], "normalize": True, "lambda": 1.0, "rescale": False}
    parameters |= {"rescale_norm": "l1", "consensus_method": "sum"}
    assert report["settings"] == [{"method": "ties", "based": True, "parameters": parameters}]
    assert {entry["settings"] for entry in report["tensors"]} == {0}


def test_each_layer_refers_to_its_step_of_a_gradient(recipe_of, merge):
    report = written(merge(recipe_of("slerp")))
    values = {name: report["settings"][entry["settings"]]["parameters"]["t"] for name, entry in by_name(report).items()}
    found = [values[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(3)]
    assert found == pytest.approx([0.2, 0.4, 0.6])
    assert values["model.norm.weight"] == 0.2
    assert len(report["settings"]) == 3


def test_sources_of_a_stack_keep_their_own_numbers(recipe_of, merge):
    report = written(merge(recipe_of("passthrough")))
    entry = by_name(report)["model.layers.3.mlp.up_proj.weight"]
    assert entry["sources"] == [{"model": 1, "tensor": "model.layers.2.mlp.up_proj.weight"}]
    assert entry["relative_distance"] == 0
    left = {(entry["model"], name) for entry in report["left_over"] for name in entry["tensors"]}
    assert (0, "model.layers.2.mlp.up_proj.weight") in left
    assert (1, "model.layers.0.mlp.up_proj.weight") in left
    assert report["settings"] == [{"method": "passthrough", "based": False, "parameters": {"scale": [1.0]}}]


def test_a_module_taken_over_whole_is_not_merged(make_model, merge):
    base, model = (make_model(name, seed, vision=True) for seed, name in enumerate(("base", "model")))
    modules = {"text_decoder": {"models": [{"model": str(model)}]}}
    out = merge({"merge_method": "task_arithmetic", "base_model": str(base), "modules": modules})
    assert [parent["role"] for parent in written(out)["parents"]] == [["base", "donor"], ["merged"]]
    assert [setting["method"] for setting in written(out)["settings"]] == ["task_arithmetic", "passthrough"]
    assert (out / "README.md").read_text().count("\n* ") == 1


def test_integers_have_no_norm(make_model, merge):
    extra = {"model.position_ids": np.arange(5)}
    models = [make_model(name, seed, extra=extra) for seed, name in enumerate("ab")]
    report = written(merge({"merge_method": "linear", "models": [{"model": str(model)} for model in models]}))
    entry = by_name(report)["model.position_ids"]
    assert (entry["dtype"], entry["norm"], entry["relative_distance"], entry["non_finite"]) == ("I64", None, None, 0)


def test_warnings_and_notices_are_kept(recipe_of, merge):
    recipe = recipe_of("linear")
    recipe["parameters"] = {"density": 0.5}
    (warning,) = written(merge(recipe))["warnings"]
    assert "density" in warning["what"]
    assert "parameters.density" in warning["place"]
    notices = recipe_of("slerp")
    notices["models"] = [{"model": notices.pop("base_model")}, *notices["models"]]
    assert any("as base" in notice for notice in written(merge(notices, "second"))["notices"])


def test_the_same_merge_gives_the_same_report(recipe_of, merge):
    recipe = recipe_of("ties")
    first, second = (written(merge(recipe, name)) for name in ("first", "second"))
    del first["seconds"], second["seconds"]
    assert first == second


def test_what_is_returned_is_what_is_written(recipe_of, tmp_path):
    returned = merge_recipe(yaml.safe_dump(recipe_of("linear")), tmp_path / "out")
    assert written(tmp_path / "out") == returned


def test_outcomes_come_in_any_order_and_one_per_task(recipe_of):
    plan = plan_merge(yaml.safe_dump(recipe_of("linear")))
    told = [Told(task, norm=float(task)) for task in range(len(plan.tasks))]
    report = merge_report(plan, reversed(told), {})
    assert [entry["norm"] for entry in report["tensors"]] == [float(task) for task in range(len(told))]
    assert [entry["name"] for entry in report["tensors"]] == [task.out.name for task in plan.tasks]
    for wrong in (told[1:], [*told, told[0]], [told[0], *told[:-1]]):
        with pytest.raises(AssertionError, match="one outcome each"):
            merge_report(plan, wrong, {})


def test_numbers_that_json_does_not_have_are_null(recipe_of):
    plan = plan_merge(yaml.safe_dump(recipe_of("linear")))
    told = [Told(task) for task in range(len(plan.tasks))]
    told[0] = Told(0, norm=math.inf, distance=math.nan)
    told[1] = Told(1, distance=1.0, reference=0.0)
    report = merge_report(plan, told, {"merging": 1.23456})
    json.dumps(report, allow_nan=False)
    assert [report["tensors"][index]["norm"] for index in (0, 1)] == [None, 3.0]
    assert [report["tensors"][index]["relative_distance"] for index in (0, 1, 2)] == [None, None, 0.5]
    assert report["seconds"] == {"merging": 1.235}


def test_headline(recipe_of, merge):
    report = written(merge(recipe_of("ties")))
    lines = dict(headline(report))
    totals = report["totals"]
    assert lines["tensors"] == f"{totals['tensors']} with {totals['parameters']:,} parameters"
    assert lines["written"] == f"{totals['bytes_written'] / 1000:.2f} kB in 1 file"
    distances = {entry["name"]: entry["relative_distance"] for entry in report["tensors"]}
    farthest = max(distances, key=distances.get)
    mean = sum(distances.values()) / len(distances)
    assert lines["distance to base"] == f"{mean:.2%} on average, at most {distances[farthest]:.2%} ({farthest})"
    assert lines["time"].endswith(" s")
    assert "left over" not in lines


def test_headline_of_a_stack_tells_what_is_left_over(recipe_of, merge):
    lines = headline(written(merge(recipe_of("passthrough"))))
    assert "distance to base" not in dict(lines)
    assert ("left over", "11 tensors: not selected by the recipe") in lines
