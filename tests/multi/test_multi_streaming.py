"""Merges that are made while others read them give the bytes that going through the disk gives."""

import json

import numpy as np
import pytest
import yaml
from multi_models import states, weights, write_model
from safetensors.numpy import load_file, save_file

from mergekit.errors import NonFiniteError
from mergekit.merging import JobOptions
from mergekit.methods import METHODS
from mergekit.multi import MultiOptions, arranged, read_pipeline, run_pipeline
from mergekit.plan import PlanOptions


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models whose larger matrices have several grains and stripes, and rows that do not fit them."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, dtype) in enumerate([("base", "bfloat16"), ("a", "bfloat16"), ("b", "float16"), ("c", "float32")]):
        write_model(folder / name, seed, dtype, width=100, inner=700, layers=1, rows=130)
    return folder


def stage(models, method, names, **more):
    """A document that merges models or stages."""
    entries = [{"model": str(models / name) if (models / name).is_dir() else name} for name in names]
    return {"merge_method": method, "models": entries, **more}


def piped(*documents):
    return yaml.safe_dump_all(documents, sort_keys=False)


def both_ways(text, folder, **options):
    """The weights of the last merge, written by way of the disk and without, and what became of the stages."""
    job = JobOptions(plan=PlanOptions(**{"workers": 2, **options}))
    direct = run_pipeline(text, options=MultiOptions(folder / "direct", folder / "stages", job=job))
    assert not (folder / "stages").exists()
    run_pipeline(text, options=MultiOptions(folder / "kept", folder / "kept-stages", keep=True, job=job))
    return weights(folder / "direct"), weights(folder / "kept"), states(direct)


def inner_stage(models, method):
    kind = METHODS[method]
    count = kind.needs.most or 2
    more = {"base_model": str(models / "base")} if kind.needs.base != "ignored" else {}
    settings = {
        "slerp": {"t": 0.3},
        "nearswap": {"t": 0.05},
        "ramplus_tl": {"r": 0.1, "alpha": 0.2},
        "sce": {"select_topk": 0.3},
    }.get(method, {})
    own = {parameter.name for parameter in kind.parameters()}
    settings |= {"density": 0.4} if "density" in own else {}
    settings |= {"gamma": 0.02} if "gamma" in own else {}
    dtype = {"dtype": "float16"} if len(method) % 2 else {"dtype": "bfloat16"}
    return stage(models, method, ["a", "b", "c"][:count], parameters=settings, name="inner", **more, **dtype)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_merged_on_the_way_to_the_same_bytes(method, models, tmp_path):
    last = stage(models, "della", ["inner", "c"], base_model=str(models / "base"), parameters={"density": 0.6})
    direct, kept, became = both_ways(piped(inner_stage(models, method), last), tmp_path)
    assert became == {"inner": "on the way", "": "written"}
    assert direct == kept


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_it_rounds_in_between_as_the_disk_would(dtype, models, tmp_path):
    first = stage(models, "linear", ["a", "c"], name="first", dtype=dtype)
    last = stage(models, "linear", ["first", "b"], dtype="float32")
    direct, kept, _ = both_ways(piped(first, last), tmp_path)
    assert direct == kept


def test_float64_passes_through(models, tmp_path):
    first = stage(models, "linear", ["a", "c"], name="first", dtype="float64")
    direct, kept, became = both_ways(piped(first, stage(models, "passthrough", ["first"])), tmp_path)
    assert became["first"] == "on the way"
    assert direct == kept
    assert load_file(tmp_path / "direct" / "model.safetensors")["model.norm.weight"].dtype == np.float64


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 3}, {"max_memory": 400_000_000}])
def test_a_chain_gives_the_same_for_any_threads_and_memory(options, models, tmp_path):
    base = {"base_model": str(models / "base")}
    chain = piped(
        stage(models, "slerp", ["a"], name="one", parameters={"t": 0.4}, **base),
        stage(models, "ties", ["one", "b"], name="two", parameters={"density": 0.3}, **base),
        stage(models, "model_stock", ["two", "c", "a"], name="three", **base),
        stage(models, "task_arithmetic", ["three", "b"], **base),
    )
    direct, kept, became = both_ways(chain, tmp_path, **options)
    assert became == {"one": "on the way", "two": "on the way", "three": "on the way", "": "written"}
    assert direct == kept


def test_layers_of_a_stage_can_be_stacked(models, tmp_path):
    first = stage(models, "linear", ["a", "c"], name="first")
    slices = [
        {"sources": [{"model": "first", "layer_range": [0, 1]}]},
        {"sources": [{"model": str(models / "b"), "layer_range": [0, 1]}]},
    ]
    direct, kept, became = both_ways(piped(first, {"merge_method": "passthrough", "slices": slices}), tmp_path)
    assert became["first"] == "on the way"
    assert direct == kept


def obstacles(text, **options):
    with arranged(read_pipeline(text), MultiOptions(**options)) as arrangement:
        return {step.stage.key: step.reason for step in arrangement.steps if step.reason}


def test_what_cannot_be_merged_on_the_way_says_why(models, tmp_path):
    first = stage(models, "linear", ["a", "c"], name="first")
    twice = [{"sources": [{"model": "first", "layer_range": [0, 1]}]}] * 2
    stacked = piped(first, {"merge_method": "passthrough", "slices": twice})
    shared = piped(first, stage(models, "linear", ["first", "a"], name="x"), stage(models, "linear", ["first", "x"]))
    out = {"out": tmp_path / "out"}
    assert obstacles(stacked, **out) == {"first": "`model.layers.0.input_layernorm.weight` is read 2 times"}
    assert obstacles(shared, **out) == {"first": "2 merges need it"}
    job = JobOptions(device="cpu")
    assert obstacles(piped(first, stage(models, "linear", ["first", "b"])), job=job, **out) == {
        "first": "another device than the CPU computes"
    }


def test_a_method_that_is_not_ours_goes_through_the_disk(models, tmp_path):
    (tmp_path / "whole.py").write_text(
        "from mergekit.methods import merge_method\n\n\n"
        "@merge_method(title='Mean', base='ignored', whole=True)\n"
        "def mean(models):\n    'Mean.'\n    return sum(models) / len(models)\n"
    )
    first = stage(models, f"{tmp_path}/whole.py:mean", ["a", "c"], name="first")
    text, job = piped(first, stage(models, "linear", ["first", "b"])), JobOptions(plan=PlanOptions(allow_code=True))
    assert obstacles(text, out=tmp_path / "out", job=job) == {"first": "`mean` is none of mergekit's own methods"}
    options = MultiOptions(tmp_path / "out", job=job)
    assert states(run_pipeline(text, options=options)) == {"first": "written", "": "written"}
    assert states(run_pipeline(text, options=options))[""] == "up to date"
    (tmp_path / "whole.py").write_text((tmp_path / "whole.py").read_text().replace("sum(models)", "2 * sum(models)"))
    again = MultiOptions(tmp_path / "out", job=JobOptions(plan=job.plan, overwrite=True))
    assert states(run_pipeline(text, options=again)) == {"first": "written", "": "written"}


def test_a_tensor_whose_shape_is_cropped_goes_through_the_disk(models, tmp_path):
    write_model(tmp_path / "wider", 9, width=100, inner=700, layers=1, rows=150)
    first = {"merge_method": "passthrough", "name": "first", "models": [{"model": str(tmp_path / "wider")}]}
    text = piped(first, stage(models, "linear", ["a", "first"]))
    job = JobOptions(plan=PlanOptions(crop_vocabulary=True))
    reasons = obstacles(text, out=tmp_path / "out", job=job)
    assert reasons == {"first": "`model.embed_tokens.weight` is changed before it is merged"}
    done = run_pipeline(text, options=MultiOptions(tmp_path / "out", job=job))
    assert states(done) == {"first": "written", "": "written"}
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].shape == (130, 100)


def test_numbers_that_break_in_a_stage_are_found(models, tmp_path):
    broken = write_model(tmp_path / "broken", 3, width=100, inner=700, layers=1, rows=130)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][5] = 1e6
    save_file(tensors, broken / "model.safetensors")
    first = {"merge_method": "linear", "name": "first", "dtype": "float16", "models": [{"model": str(broken)}]}
    text = piped(first, stage(models, "linear", ["a", "first"]))
    with pytest.raises(NonFiniteError, match=r"`model\.norm\.weight` .* after the merge `first`"):
        run_pipeline(text, options=MultiOptions(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_report_names_the_stage_and_the_models_that_it_was_made_of(models, tmp_path):
    first = stage(models, "linear", ["a", "c"], name="first")
    text = piped(first, stage(models, "linear", ["first", "b"]))
    run_pipeline(text, options=MultiOptions(tmp_path / "out"))
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    parents = [parent["model"] for parent in report["parents"]]
    assert parents == ["first", str(models / "b"), str(models / "a"), str(models / "c")]
    assert [bool(parent["files"]) for parent in report["parents"]] == [False, True, True, True]
    assert "`first` is merged by linear on the way, and not written" in report["notices"]
    sizes = {
        name: sum(array.nbytes for array in load_file(models / name / "model.safetensors").values()) for name in "bc"
    }
    assert report["totals"]["bytes_read"] == 2 * sizes["b"] + sizes["c"]


class Interrupting:
    """Progress that stops the merge after so many steps."""

    def __init__(self, steps):
        self.steps, self.plan = steps, None

    def planned(self, plan):
        self.plan = plan

    def advance(self, nbytes):
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt


def test_a_merge_that_makes_others_on_the_way_is_continued(models, tmp_path):
    first = stage(
        models, "ties", ["a", "c"], name="first", base_model=str(models / "base"), parameters={"density": 0.4}
    )
    text = piped(first, stage(models, "slerp", ["first"], base_model=str(models / "b"), parameters={"t": 0.4}))
    options = MultiOptions(tmp_path / "out", job=JobOptions(plan=PlanOptions(workers=1)))
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(text, options=options, telling=lambda step, job: job(Interrupting(6)))
    assert not (tmp_path / "out").exists()
    told = Interrupting(0)
    run_pipeline(text, options=options, telling=lambda step, job: job(told))
    assert any("an interrupted merge is continued" in notice for notice in told.plan.findings.notices)
    run_pipeline(text, options=MultiOptions(tmp_path / "whole"))
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_the_plan_counts_the_memory_of_what_is_made_on_the_way(models, tmp_path):
    first = stage(models, "linear", ["a", "c"], name="first")
    text = piped(first, stage(models, "linear", ["first", "b"]))
    peaks = []
    for keep in (None, True):
        told = Interrupting(0)
        job = JobOptions(plan=PlanOptions(workers=1))
        options = MultiOptions(tmp_path / f"out{keep}", keep=keep, job=job)
        run_pipeline(text, options=options, telling=lambda step, job, told=told: job(told))
        peaks.append(told.plan.memory.peak)
    assert peaks[0] - peaks[1] == (1 << 16) * 8 * 4  # entries, bytes, and operands with output and reference
