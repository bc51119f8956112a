"""Planning goes on behind a problem as long as something can be found out, and tells nothing that follows from it."""

import json

import pytest
from tiny_checkpoints import piece, recipe

from mergekit.errors import (
    BudgetError,
    Findings,
    IncompatibleModelsError,
    MergekitError,
    OutputError,
    RecipeError,
    SeveralProblemsError,
    UnsupportedError,
)
from mergekit.plan import PlanOptions, Problems, plan_merge, try_to_plan


def attempt(text, **options):
    return try_to_plan(text, file="merge.yml", options=PlanOptions(**options))


def told(found):
    """Kinds of errors, and how many things each says."""
    return [(type(error), len(getattr(error, "problems", "1"))) for error in found.problems.errors]


# The collection


def test_one_problem_is_raised_as_it_is():
    problems, error = Problems(Findings()), OutputError("full")
    with problems.collected():
        raise error
    with pytest.raises(OutputError) as caught:
        problems.raise_errors()
    assert caught.value is error


def test_several_problems_are_one_error_with_the_first_exit_code():
    problems = Problems(Findings())
    for error in (BudgetError("too large"), OutputError("full", place="out")):
        with problems.collected():
            raise error
    problems.findings.error("first mistake")
    problems.findings.error("second mistake")
    with pytest.raises(SeveralProblemsError) as caught:
        problems.raise_errors()
    assert caught.value.exit_code == 3
    assert str(caught.value) == "4 problems\n\nfirst mistake\n\nsecond mistake\n\ntoo large\n\nfull\n  at out"
    assert [type(error) for error in caught.value.errors] == [RecipeError, BudgetError, OutputError]


def test_bugs_are_not_collected():
    problems = Problems(Findings())
    with pytest.raises(ZeroDivisionError), problems.collected():
        raise ZeroDivisionError
    assert problems.errors == ()
    problems.raise_errors()


@pytest.mark.parametrize("strict", [False, True])
def test_warnings_count_if_strict(strict):
    problems = Problems(Findings(), strict)
    problems.findings.warn("hm")
    assert len(problems.errors) == strict


# What is found behind a problem


def test_tensors_are_compared_whatever_the_parameters_are(llamas, hollow):
    wide = hollow("wide", width=64)
    text = recipe("linear", [llamas / "a", wide], parameters={"normalize": "perhaps", "weight": [0.1, "much"]})
    assert told(attempt(text)) == [(RecipeError, 2), (IncompatibleModelsError, 1)]
    assert told(attempt(recipe("ties", [llamas / "a", wide]))) == [(RecipeError, 1), (IncompatibleModelsError, 1)]


def test_tensors_are_compared_whatever_the_number_of_models_is(llamas, hollow):
    models = [llamas / "a", llamas / "b", hollow("wide", width=64)]
    text = recipe("slerp", models, base_model=str(llamas / "base"), parameters={"t": 0.5})
    assert told(attempt(text)) == [(RecipeError, 1), (IncompatibleModelsError, 1)]


def test_other_slices_are_compared_behind_a_wrong_one(llamas, hollow):
    slices = [piece((llamas / "a", 0, 9)), piece((hollow("wide", width=64), 0, 2), (llamas / "a", 0, 2))]
    found = attempt(recipe("linear", slices=slices))
    assert [kind for kind, _ in told(found)] == [RecipeError, IncompatibleModelsError]


def test_budgets_are_looked_at_only_where_there_are_tasks(llamas):
    models = [llamas / "a", llamas / "b"]
    assert told(attempt(recipe("linear", models), max_memory=1 << 20)) == [(BudgetError, 1)]
    wrong = recipe("linear", models, parameters={"normalize": "perhaps"})
    assert told(attempt(wrong, max_memory=1 << 20)) == [(RecipeError, 1)]


def test_strict_warnings_of_all_steps_come_together(llamas, hollow):
    tall = hollow("other", model_type="mistral")
    text = recipe("linear", [llamas / "a", tall], parameters={"int8_mask": True})
    found = attempt(text, strict=True)
    assert [kind for kind, _ in told(found)] == [RecipeError]
    whats = [problem.what for problem in found.problems.errors[0].problems]
    assert any("int8_mask" in what for what in whats)
    assert any("different architectures" in what for what in whats)


# What follows from a problem


def with_tokens(folder, *tokens):
    vocabulary = {"type": "WordLevel", "vocab": {text: number for number, text in enumerate(tokens)}, "unk_token": "a"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": vocabulary, "added_tokens": []}))
    return folder


def test_vocabularies_that_cannot_be_aligned_are_no_tensors_of_other_shapes(hollow):
    first, second = hollow("first", rows=64), hollow("second", rows=72)
    text = recipe("linear", [first, second], tokenizer={"source": "union"})
    assert [kind for kind, _ in told(attempt(text))] == [RecipeError]


def test_ids_that_mean_other_tokens_are_told_once(hollow):
    first = with_tokens(hollow("first", rows=64), "a", "b", "c")
    second = with_tokens(hollow("second", rows=72), "a", "c", "b")
    found = attempt(recipe("linear", [first, second]))
    assert told(found) == [(RecipeError, 1)]
    assert "2 ids mean other tokens" in str(found.problems.errors[0])
    wide = with_tokens(hollow("wide", rows=72, width=64), "a", "c", "b")
    assert told(attempt(recipe("linear", [first, wide]))) == [(RecipeError, 1), (IncompatibleModelsError, 1)]


def test_layers_that_are_not_there_are_told_once(llamas, hollow):
    text = recipe("linear", [llamas / "a", hollow("tall", layers=6)], parameters={"normalize": "perhaps"})
    found = attempt(text)
    assert told(found) == [(RecipeError, 1), (IncompatibleModelsError, 1)]
    assert "6 layers" in str(found.problems.errors[1])


def test_a_missing_parameter_is_told_once(llamas):
    found = attempt(recipe("slerp", [llamas / "a"], base_model=str(llamas / "base")))
    assert told(found) == [(RecipeError, 1)]


def test_a_model_that_cannot_be_opened_ends_the_search(llamas, tmp_path):
    found = attempt(recipe("liner", [llamas / "a", tmp_path / "nothing"], parameters={"weight": 1}))
    assert told(found) == [(RecipeError, 2)]
    assert (found.models, found.plan, found.written) == ((), None, None)


def test_an_unreadable_quantisation_is_told_with_the_rest(hollow):
    settings = {"quantization_config": {"quant_method": "abacus"}}
    models = [hollow("first", **settings), hollow("second", **settings)]
    found = attempt(recipe("linear", models, parameters={"normalize": "perhaps"}))
    assert told(found) == [(RecipeError, 1), (UnsupportedError, 1)]


# What would be written


def test_the_size_of_the_output_is_that_of_its_files(llamas):
    found = attempt(recipe("linear", [llamas / "a", llamas / "b"], dtype="float32"), shard_bytes=50_000)
    assert found.written == sum(shard.nbytes for shard in found.result().shards)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_size_is_known_though_the_tensors_do_not_go_together(dtype, llamas, hollow):
    models = [llamas / "a", llamas / "b"]
    exact = attempt(recipe("linear", models, dtype=dtype)).result().write_bytes
    assert attempt(recipe("linear", [llamas / "a", hollow("wide", width=64)], dtype=dtype)).written == exact
    assert attempt(recipe("linear", models, dtype=dtype), max_memory=1).written == exact


def test_plan_merge_raises_what_was_found(llamas, hollow):
    text = recipe("linear", [llamas / "a", hollow("wide", width=64)], parameters={"normalize": "perhaps"})
    with pytest.raises(SeveralProblemsError, match="2 problems"):
        plan_merge(text)
    with pytest.raises(MergekitError):
        attempt(text).result()
