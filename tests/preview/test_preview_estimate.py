"""What a merge will cost: bytes and passes from the plan, rates from a moment's measurement."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_checkpoints import llama_config, llama_shapes, recipe, write_hollow

from mergekit.engine import open_device
from mergekit.errors import MethodError
from mergekit.plan import PlanOptions, plan_merge
from mergekit.preview import estimate
from mergekit.preview.measure import merging_seconds, reading_rate, writing_rate

BYTES = 2 * sum(math.prod(shape) for shape in llama_shapes(llama_config()).values())


def plan(text, **options):
    return plan_merge(text, options=PlanOptions(workers=1, **options))


def test_bytes_are_counted_by_model(models, tmp_path):
    cost = estimate(plan(recipe("linear", models)), tmp_path / "out")
    assert [(own.model, own.nbytes, own.swept) for own in cost.reads] == [
        (str(model), BYTES, BYTES) for model in models
    ]
    assert cost.passes == (1, 1)


def test_methods_with_reductions_go_over_tensors_again(models, hollow, tmp_path):
    base = hollow("base")
    text = recipe("ties", models, base_model=str(base), parameters={"density": 0.5, "rescale": True})
    found = plan(text)
    cost = estimate(found, tmp_path)
    passes = 1 + len(found.tasks[0].method.reductions())
    assert passes == 3
    assert cost.passes == (passes, passes)
    assert [own.swept for own in cost.reads] == [passes * BYTES] * 3


def test_what_is_copied_is_read_once(models, tmp_path):
    cost = estimate(plan(recipe("passthrough", models[:1])), tmp_path)
    assert (cost.passes, [own.nbytes for own in cost.reads]) == ((1, 1), [BYTES])


def test_a_model_of_which_nothing_is_read_is_not_listed(models, hollow, tmp_path):
    text = recipe("linear", models, base_model=str(hollow("base")))
    assert [own.model for own in estimate(plan(text), tmp_path).reads] == [str(model) for model in models]


def test_a_guess_is_a_range_and_leaves_nothing_behind(models, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    cost = estimate(plan(recipe("slerp", models[1:], base_model=str(models[0]), parameters={"t": 0.5})), folder / "out")
    least, most = cost.seconds
    assert 0 < least < most
    assert cost.read_rate > 0 < cost.write_rate
    assert list(folder.iterdir()) == []


def test_a_guess_is_made_of_reading_writing_and_merging(models, tmp_path, monkeypatch):
    rates = {"reading_rate": BYTES / 4, "writing_rate": BYTES / 5, "merging_seconds": 3}
    for name, value in rates.items():
        monkeypatch.setattr(f"mergekit.preview.costs.{name}", lambda *_, value=value: value)
    least, most = estimate(plan(recipe("linear", models)), tmp_path).seconds
    assert 8 * 0.5 < least < 8  # as if all were done at a time, the longest of 3, 8 and 5
    assert 3 + 8 + 5 < most < 2.5 * (3 + 8 + 5)  # as if one were done after the other, on a busy machine


def test_work_is_in_proportion_to_entries(models, hollow):
    giants = [hollow(name, width=4096, inner=14336, layers=32, rows=32000) for name in ("large", "larger")]
    small, large = (plan(recipe("linear", pair)) for pair in (models, giants))
    assert merging_seconds(large, open_device(None)) > merging_seconds(small, open_device(None))


def test_where_nothing_can_be_written_there_is_no_guess(models, tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", dir)

    monkeypatch.setattr("mergekit.preview.measure.tempfile.TemporaryFile", refuse)
    cost = estimate(plan(recipe("linear", models)), tmp_path)
    assert (cost.write_rate, cost.seconds) == (None, None)
    assert cost.unknown == "nothing can be written to try how fast that is"


METHOD = '''
from mergekit.methods import merge_method

@merge_method(title="Broken", base="ignored")
def broken(models):
    """Fail.

    ``y = ?``
    """
    raise RuntimeError("no")
'''


def test_a_method_that_fails_is_no_reason_to_fail(models, tmp_path):
    (tmp_path / "own.py").write_text(METHOD)
    found = plan(recipe(f"{tmp_path / 'own.py'}:broken", models), allow_code=True)
    with pytest.raises(MethodError):
        merging_seconds(found, open_device(None))
    cost = estimate(found, tmp_path)
    assert cost.seconds is None
    assert cost.unknown.startswith("the method cannot be measured: ")


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I64"])
def test_every_dtype_can_be_measured(dtype, tmp_path):
    config = llama_config()
    pair = [write_hollow(tmp_path / name, llama_shapes(config), config, dtype) for name in "ab"]
    assert merging_seconds(plan(recipe("linear", pair)), open_device(None)) > 0


def test_a_plan_without_tasks_takes_no_time(models):
    assert merging_seconds(replace(plan(recipe("linear", models)), tasks=()), open_device(None)) == 0


def test_rates(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(9 << 20))
    assert reading_rate([file]) > 0
    assert reading_rate([]) is None
    file.write_bytes(b"")
    assert reading_rate([file]) is None
    assert writing_rate(tmp_path) > 0
    assert writing_rate(Path("/no-such-folder")) is None
