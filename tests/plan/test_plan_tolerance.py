"""Rules for tensors that differ, together with what else a recipe can say."""

import json

import pytest
from tiny_checkpoints import llama_config, llama_shapes, mixtral, piece, recipe, write_hollow

from mergekit.errors import IncompatibleModelsError, MissingTensorError, RecipeError
from mergekit.plan import PlanOptions, plan_merge

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
UP = "model.layers.{}.mlp.up_proj.weight"


def plan(text, **options):
    return plan_merge(text, file="merge.yml", options=PlanOptions(**options))


def sources(found):
    """For each output tensor the folders of its operands, and the method."""
    return {
        task.out.name: (task.method.name, *(found.models[one.model].checkpoint.root.name for one in task.operands))
        for task in found.tasks
    }


def shapes(found):
    return {task.out.name: task.out.shape for task in found.tasks}


def left_over(found):
    """The tensors that are in no output, each once, by folder."""
    names = [
        (found.models[entry.model].checkpoint.root.name, name) for entry in found.leftovers for name in entry.tensors
    ]
    assert len(names) == len(set(names))
    read = {(one.model, name) for task in found.tasks for one in task.operands for name in one.view.names}
    assert not read & {(entry.model, name) for entry in found.leftovers for name in entry.tensors}
    return set(names)


# Filters


def test_the_first_case_that_matches_the_output_tensor_decides(hollow):
    one, two = hollow("one"), hollow("two", without={UP.format(0), UP.format(1), NORM})
    cases = [{"filter": "layers.0", "value": "base"}, {"filter": "mlp", "value": "skip"}]
    with pytest.raises(MissingTensorError, match=r"two has no `model\.norm\.weight`\)"):
        plan(recipe("linear", [two, one], on_missing=cases))
    found = sources(plan(recipe("linear", [one, two], on_missing=[*cases, {"value": "base"}])))
    assert found[UP.format(0)] == found[NORM] == ("passthrough", "one")
    assert found[UP.format(1)] == ("linear", "one")


def test_filters_see_the_name_in_the_output(hollow):
    """Layer 3 of the models is layer 1 of the output."""
    one, two = hollow("one"), hollow("two", without={UP.format(3)})
    slices = [piece((one, 2, 4), (two, 2, 4))]
    for number, right in ((1, True), (3, False)):
        text = recipe("linear", slices=slices, on_missing={"filter": f"layers.{number}.", "value": "base"})
        if right:
            assert sources(plan(text))[UP.format(1)] == ("passthrough", "one")
        else:
            with pytest.raises(MissingTensorError):
                plan(text)


def test_a_filter_that_matches_nothing_is_an_error_at_its_line(llamas):
    rules = {
        "on_missing": [{"filter": "embed_tokns", "value": "base"}],
        "on_shape_mismatch": [{"filter": "zzz", "value": "crop"}],
    }
    with pytest.raises(RecipeError) as caught:
        plan(recipe("linear", [llamas / "a", llamas / "b"], **rules))
    assert [(str(problem.place), problem.what, problem.hint) for problem in caught.value.problems] == [
        ("on_missing[0].filter (merge.yml:6)", "filter `embed_tokns` matches no tensor", "`embed_tokens`"),
        ("on_shape_mismatch[0].filter (merge.yml:9)", "filter `zzz` matches no tensor", None),
    ]


# What is said


def test_tensors_are_counted_and_the_first_are_named(hollow):
    one, two = hollow("one"), hollow("two", inner=64)
    found = plan(recipe("linear", [one, two], on_shape_mismatch="crop"))
    warnings = [problem.what for problem in found.findings.warnings]
    up, gate = UP.format(0), UP.format(0).replace("up", "gate")
    assert warnings == [
        f"`on_shape_mismatch: crop`: 8 tensors cut to [48, 32] from [48, 32] in {one} and [64, 32] in {two}: "
        f"`{gate}`, `{up}`, `{UP.format(1).replace('up', 'gate')}` and 5 more",
        f"`on_shape_mismatch: crop`: 4 tensors cut to [32, 48] from [32, 48] in {one} and [32, 64] in {two}: "
        + ", ".join(f"`{UP.format(layer).replace('up', 'down')}`" for layer in range(3))
        + " and 1 more",
    ]
    (treated,) = found.treated
    assert (treated.rule, len(treated.tensors)) == ("on_shape_mismatch: crop", 12)
    with pytest.raises(RecipeError, match="cut to"):
        plan(recipe("linear", [one, two], on_shape_mismatch="crop"), strict=True)


def test_where_nearly_everything_differs_no_rule_is_proposed(hollow, tmp_path):
    one = hollow("one")
    with pytest.raises(IncompatibleModelsError) as caught:
        plan(recipe("linear", [one, hollow("two", width=64)]))
    assert caught.value.problem.hint is None
    config = {**llama_config(), "model_type": "odd"}
    other = {f"odd.{name.removeprefix('model.')}.x": shape for name, shape in llama_shapes(config).items()}
    write_hollow(tmp_path / "other", other, config)
    with pytest.raises((MissingTensorError, IncompatibleModelsError)) as caught:
        plan(recipe("linear", [one, tmp_path / "other"]))
    assert "on_missing" not in str(caught.value)


# Slices


def test_a_tensor_that_some_slices_read_and_others_do_not_is_no_leftover(hollow):
    """Layer 1 of the second model is merged where the first model has its counterpart, and left out elsewhere."""
    one, two = hollow("one", without={UP.format(0)}), hollow("two")
    slices = [piece((one, 0, 1), (two, 1, 2)), piece((one, 1, 2), (two, 1, 2)), piece((one, 0, 1), (two, 2, 3))]
    found = plan(recipe("linear", slices=slices, on_missing="base"))
    assert UP.format(0) not in sources(found)
    assert sources(found)[UP.format(1)] == ("linear", "one", "two")
    assert ("two", UP.format(1)) not in left_over(found)
    assert ("two", UP.format(2)) in left_over(found)


def test_a_tensor_that_is_left_out_twice_is_a_leftover_once(hollow):
    one, two = hollow("one"), hollow("two", without={UP.format(0)})
    slices = [piece((two, 0, 1), (one, 0, 1))] * 3
    assert ("one", UP.format(0)) in left_over(plan(recipe("linear", slices=slices, on_missing="base")))


def test_the_base_of_a_slice_is_its_own(hollow):
    one, two = hollow("one"), hollow("two", extra={UP.format(layer): (56, 32) for layer in range(4)})
    slices = [
        piece((one, 0, 2), (two, 0, 2)),
        piece((one, 2, 4), (two, 2, 4), base_model=str(two)),
    ]
    settings = {"base_model": str(one), "parameters": {"t": 0.5}, "on_shape_mismatch": "base"}
    found = plan(recipe("slerp", slices=slices, **settings))
    assert sources(found)[UP.format(1)] == ("passthrough", "one")
    assert sources(found)[UP.format(2)] == ("passthrough", "two")


def test_for_methods_without_a_base_it_is_the_model_that_is_called_so(hollow):
    one, two = hollow("one"), hollow("two", inner=64)
    for settings, base in (({}, "one"), ({"base_model": str(two)}, "two")):
        found = plan(recipe("linear", [one, two], on_shape_mismatch="base", **settings))
        assert sources(found)[UP.format(0)] == ("passthrough", base)


# Heads and vocabularies


def test_an_embedding_that_stands_in_for_a_head_is_not_missing(hollow):
    one, two = hollow("one"), hollow("two", tied=True)
    for rule in ("base", "skip"):
        found = plan(recipe("linear", [one, two], on_missing=rule))
        assert sources(found)[HEAD] == ("linear", "one", "two")
        assert found.treated == ()


def test_an_embedding_that_stands_in_for_a_head_may_have_another_shape(hollow):
    one, two = hollow("one"), hollow("two", tied=True, rows=80)
    found = plan(recipe("linear", [one, two], on_shape_mismatch="skip"))
    assert sources(found)[HEAD] == sources(found)[EMBEDDING] == ("linear", "one")
    assert left_over(found) == {("two", EMBEDDING)}
    cropped = plan(recipe("linear", [two, one], on_shape_mismatch="crop"))
    assert shapes(cropped)[HEAD] == shapes(cropped)[EMBEDDING] == (64, 32)
    assert json.loads(cropped.texts["config.json"])["vocab_size"] == 64


def test_truncated_vocabularies_are_no_unequal_shapes(hollow):
    one, two = hollow("one", rows=80), hollow("two", inner=64)
    text = recipe("linear", [one, two], on_shape_mismatch="base")
    found = plan(text, crop_vocabulary=True)
    assert shapes(found)[EMBEDDING] == shapes(found)[HEAD] == (64, 32)
    assert sources(found)[EMBEDDING] == ("linear", "one", "two")
    assert sources(found)[UP.format(0)] == ("passthrough", "one")
    assert sources(plan(text))[EMBEDDING] == ("passthrough", "one")


def test_a_width_that_differs_beside_a_truncated_vocabulary(hollow):
    one, two = hollow("one", rows=80), hollow("two", extra={EMBEDDING: (64, 20)})
    found = plan(recipe("linear", [one, two], on_shape_mismatch="crop"), crop_vocabulary=True)
    assert shapes(found)[EMBEDDING] == (64, 20)
    assert shapes(found)[HEAD] == (64, 32)


def test_the_vocabulary_that_config_json_tells_is_that_of_the_base(hollow):
    one, two = hollow("one"), hollow("two", rows=80)
    settings = {"base_model": str(one), "on_shape_mismatch": "base"}
    slices = [piece((two, 0, 4), (one, 0, 4), base_model=str(two), parameters={"t": 0.5})]
    found = plan(recipe("slerp", slices=slices, **settings))
    assert shapes(found)[EMBEDDING] == shapes(found)[HEAD] == (80, 32)
    assert json.loads(found.texts["config.json"])["vocab_size"] == 80


# What cannot be done


def test_ranks_that_differ_cannot_be_cropped(hollow):
    one, two = hollow("one"), hollow("two", extra={NORM: (32, 1)})
    with pytest.raises(IncompatibleModelsError, match="which cannot be cropped"):
        plan(recipe("linear", [one, two], on_shape_mismatch="crop"))
    found = plan(recipe("linear", [one, two], on_shape_mismatch="base"))
    assert sources(found)[NORM] == ("passthrough", "one")


def test_too_few_models_for_a_method_that_needs_two(hollow):
    base, one, two = hollow("base"), hollow("one"), hollow("two", without={NORM})
    text = recipe("model_stock", [one, two], base_model=str(base), on_missing="skip")
    with pytest.raises(
        RecipeError, match=r"cannot be merged from .*one and .*base alone: model_stock needs at least 2"
    ):
        plan(text)


def test_buffers_that_loaders_compute_need_no_rule(hollow):
    extra = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (4,) for layer in range(4)}
    found = plan(recipe("linear", [hollow("old", extra=extra), hollow("new")], on_missing="skip"))
    assert found.treated == ()
    assert left_over(found) == {("old", name) for name in extra}


def test_experts_are_cropped_one_by_one_and_not_when_they_are_fused(tmp_path):
    """The corner of a fused matrix would hold other parts of it in each model."""
    config, own = mixtral()
    wider = {name: (56, 32) if ".w1." in name or ".w3." in name else shape for name, shape in own.items()}
    for name, held in (("one", own), ("two", wider)):
        write_hollow(tmp_path / name, held, config)
    text = recipe("linear", [tmp_path / "one", tmp_path / "two"], on_shape_mismatch="crop")
    assert shapes(plan(text)) == own
    with pytest.raises(IncompatibleModelsError, match=r"gate_up_proj` is .*which cannot be cropped"):
        plan(text, fuse_experts=True)
