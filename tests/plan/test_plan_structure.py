"""Which tensors a plan makes of which: slices, bases, heads, modules, and what is left over."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import SIZES, llama_config, llama_shapes, piece, recipe, write_hollow

from mergekit.errors import IncompatibleModelsError, UnsupportedError
from mergekit.plan import PlanOptions, plan_merge

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def plan(text, **options):
    return plan_merge(text, file="merge.yml", options=PlanOptions(**options))


def inputs(found):
    """For each output tensor the folder names and tensor names of its operands."""
    return {
        task.out.name: [
            (found.models[operand.model].checkpoint.root.name, *operand.view.names) for operand in task.operands
        ]
        for task in found.tasks
    }


def config(found):
    return json.loads(found.texts["config.json"])


def assert_all_accounted_for(found):
    """Every tensor of every model is either read by a task or left over with a reason, and not both."""
    used = {(operand.model, name) for task in found.tasks for operand in task.operands for name in operand.view.names}
    left = [(entry.model, name) for entry in found.leftovers for name in entry.tensors]
    assert len(left) == len(set(left))
    assert not used & set(left)
    everything = {(index, name) for index, model in enumerate(found.models) for name in model.checkpoint.tensors}
    assert used | set(left) == everything
    assert all(entry.reason for entry in found.leftovers)


# Slices


def test_before_the_stack_comes_the_first_slice_and_behind_it_the_last(llamas):
    slices = [piece((llamas / "a", 0, 3)), piece((llamas / "b", 1, 4), (llamas / "c", 0, 3))]
    text = recipe("linear", slices=slices)
    found = plan(text)
    tensors = inputs(found)
    assert tensors[EMBEDDING] == [("a", EMBEDDING)]
    assert tensors[NORM] == [("b", NORM), ("c", NORM)]
    assert tensors[HEAD] == [("b", HEAD), ("c", HEAD)]
    query = "model.layers.{}.self_attn.q_proj.weight"
    assert [tensors[query.format(layer)] for layer in range(6)] == [
        *([("a", query.format(layer))] for layer in range(3)),
        *([("b", query.format(layer + 1)), ("c", query.format(layer))] for layer in range(3)),
    ]
    assert config(found)["num_hidden_layers"] == 6
    assert_all_accounted_for(found)


def test_a_layer_may_be_used_many_times(llamas):
    found = plan(recipe("passthrough", slices=[piece((llamas / "a", 1, 2))] * 3))
    assert config(found)["num_hidden_layers"] == 3
    query = "model.layers.1.self_attn.q_proj.weight"
    for layer in range(3):
        assert inputs(found)[f"model.layers.{layer}.self_attn.q_proj.weight"] == [("a", query)]


def test_models_of_other_depth_give_slices(hollow):
    deep, flat = hollow("deep", layers=7), hollow("flat")
    found = plan(recipe("passthrough", slices=[piece((flat, 0, 4)), piece((deep, 4, 7))]))
    assert config(found)["num_hidden_layers"] == 7
    assert_all_accounted_for(found)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=5))
def test_whatever_is_cut_every_tensor_is_accounted_for(cuts, llamas):
    cuts = [(name, min(first, last - 1), last) for name, first, last in cuts]
    found = plan(recipe("passthrough", slices=[piece((llamas / name, *span)) for name, *span in cuts]))
    assert_all_accounted_for(found)
    layers = sum(last - first for _, first, last in cuts)
    assert config(found)["num_hidden_layers"] == layers
    assert len(found.tasks) == 9 * layers + 3
    assert sum(task.out.nbytes for task in found.tasks) == found.write_bytes
    assert {name for shard in found.shards for name in shard.starts} == {task.out.name for task in found.tasks}


# Bases


def test_the_base_comes_first_wherever_it_is_listed(llamas):
    for order in (["base", "a", "b"], ["a", "base", "b"], ["a", "b"]):
        found = plan(recipe("ties", [llamas / name for name in order], base_model=str(llamas / "base")))
        assert inputs(found)[NORM] == [("base", NORM), ("a", NORM), ("b", NORM)]
        assert all(task.based for task in found.tasks)
        assert found.models[0].checkpoint.root.name == "base"


def test_slerp_without_a_base_takes_the_first_model_and_says_so(llamas):
    found = plan(recipe("slerp", [llamas / "b", llamas / "a"], parameters={"t": 0.5}))
    assert inputs(found)[NORM] == [("b", NORM), ("a", NORM)]
    assert found.findings.notices == [f"no base_model is given: slerp takes the first model, {llamas / 'b'}, as base"]


def test_a_base_of_a_slice_stands_above_that_of_the_recipe(llamas):
    slices = [
        piece((llamas / "a", 0, 2), (llamas / "b", 0, 2)),
        piece((llamas / "a", 2, 4), (llamas / "b", 2, 4), base_model=str(llamas / "b")),
    ]
    found = plan(recipe("slerp", slices=slices, base_model=str(llamas / "a"), parameters={"t": 0.25}))
    assert inputs(found)[EMBEDDING] == [("a", EMBEDDING), ("b", EMBEDDING)]
    assert inputs(found)[NORM] == [("b", NORM), ("a", NORM)]


@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_methods_without_base_do_not_take_in_an_unlisted_one(method, llamas):
    found = plan(recipe(method, [llamas / "a"], base_model=str(llamas / "base")))
    assert inputs(found)[NORM] == [("a", NORM)]
    (left,) = found.leftovers
    assert left.model == 0
    assert left.reason == f"{method} takes only config and other files from this model"
    assert_all_accounted_for(found)


def test_a_listed_base_is_one_of_the_averaged_models(llamas):
    found = plan(recipe("linear", [llamas / "a", llamas / "base"], base_model=str(llamas / "base")))
    assert inputs(found)[NORM] == [("a", NORM), ("base", NORM)]
    assert not found.tasks[0].based
    assert found.models[0].checkpoint.root.name == "base"


# Heads


@pytest.mark.parametrize(
    ("ties", "written", "tied"),
    [
        ((True, True), False, True),
        ((False, False), True, False),
        ((True, False), True, False),
        ((False, True), True, False),
    ],
)
def test_the_head_and_what_config_json_says_about_it_agree(ties, written, tied, hollow):
    models = [hollow(name, tied=flag) for name, flag in zip("ab", ties, strict=True)]
    found = plan(recipe("linear", models))
    heads = inputs(found).get(HEAD)
    assert (heads is not None) == written
    if heads:
        assert heads == [(name, EMBEDDING if flag else HEAD) for name, flag in zip("ab", ties, strict=True)]
    assert config(found)["tie_word_embeddings"] is tied
    assert_all_accounted_for(found)


@pytest.mark.parametrize("ties", [(True, False), (False, True)])
def test_a_stack_that_ends_in_another_kind_of_head_has_one_that_loaders_use(ties, hollow):
    models = [hollow(name, tied=flag) for name, flag in zip("ab", ties, strict=True)]
    found = plan(recipe("passthrough", slices=[piece((models[0], 0, 2)), piece((models[1], 2, 4))]))
    assert inputs(found)[HEAD] == [("b", EMBEDDING if ties[1] else HEAD)]
    assert config(found)["tie_word_embeddings"] is False


def test_an_untied_donor_that_takes_no_part_gets_its_head_from_those_that_do(hollow):
    base, one, two = hollow("base"), hollow("one", tied=True), hollow("two", tied=True)
    found = plan(recipe("linear", [one, two], base_model=str(base)))
    assert inputs(found)[HEAD] == [("one", EMBEDDING), ("two", EMBEDDING)]
    assert config(found)["tie_word_embeddings"] is False


# Buffers, modules, dtypes


def test_derived_buffers_that_only_some_have_are_left_over_with_a_reason(hollow):
    extra = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (4,) for layer in range(4)}
    old, new = hollow("old", extra=extra), hollow("new")
    for order in ([old, new], [new, old]):
        found = plan(recipe("linear", order))
        (left,) = found.leftovers
        assert found.models[left.model].checkpoint.root.name == "old"
        assert left.tensors == tuple(extra)
        assert "rotary" in left.reason
        assert_all_accounted_for(found)


def test_derived_buffers_that_all_have_are_kept(hollow):
    extra = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (4,) for layer in range(4)}
    found = plan(recipe("linear", [hollow("a", extra=extra), hollow("b", extra=extra)]))
    assert found.leftovers == ()
    assert extra.keys() <= inputs(found).keys()


@pytest.fixture
def two_stacks(tmp_path):
    """A LLaVA-like model: a language model, a vision tower and a projector."""
    text = llama_config()
    shapes = {f"language_model.{name}": shape for name, shape in llama_shapes(text).items()}
    for layer in range(3):
        for suffix in ("self_attn.q_proj.weight", "mlp.fc1.weight"):
            shapes[f"vision_tower.vision_model.encoder.layers.{layer}.{suffix}"] = (16, 16)
    shapes["vision_tower.vision_model.embeddings.patch_embedding.weight"] = (16, 3, 14, 14)
    shapes["multi_modal_projector.linear_1.weight"] = (32, 16)
    whole = {
        "model_type": "llava",
        "text_config": text,
        "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 3, "hidden_size": 16},
    }
    for name in "ab":
        write_hollow(tmp_path / name, shapes, whole)
    return tmp_path


def test_whole_models_are_merged_in_all_modules(two_stacks):
    found = plan(recipe("linear", [two_stacks / "a", two_stacks / "b"]))
    assert all([who for who, _ in operands] == ["a", "b"] for operands in inputs(found).values())
    assert found.leftovers == ()


def test_a_named_module_is_merged_and_the_rest_is_the_donors(two_stacks):
    modules = {"language_model": {"models": [{"model": str(two_stacks / name)} for name in "ab"]}}
    found = plan(recipe("linear", modules=modules))
    tensors = inputs(found)
    assert len(tensors) == len(found.models[0].checkpoint.tensors)
    for name, operands in tensors.items():
        assert [who for who, _ in operands] == (["a", "b"] if name.startswith("language_model") else ["a"]), name
    assert [notice.split(" is ")[0] for notice in found.findings.notices] == [
        "module `vision_tower`",
        "module `multi_modal_projector`",
    ]
    assert all(task.copied is not None for task in found.tasks if not task.out.name.startswith("language_model"))
    assert_all_accounted_for(found)


def test_a_named_module_is_cut_and_the_rest_keeps_its_layers(two_stacks):
    slices = [piece((two_stacks / "a", 0, 3)), piece((two_stacks / "b", 1, 4))]
    found = plan(recipe("passthrough", modules={"text_decoder": {"slices": slices}}))
    changed = config(found)
    assert changed["text_config"]["num_hidden_layers"] == 6
    assert changed["vision_config"]["num_hidden_layers"] == 3
    assert_all_accounted_for(found)


def test_slices_cut_the_language_model_beside_a_tower(two_stacks):
    found = plan(recipe("passthrough", slices=[piece((two_stacks / "a", 0, 2))]))
    assert config(found)["text_config"]["num_hidden_layers"] == 2
    assert config(found)["vision_config"]["num_hidden_layers"] == 3
    assert_all_accounted_for(found)


@pytest.mark.parametrize(
    ("dtypes", "settings", "written"),
    [
        (("BF16", "BF16"), {}, "bfloat16"),
        (("BF16", "F16"), {}, "float32"),
        (("BF16", "F32"), {}, "float32"),
        (("F64", "F16"), {}, "float64"),
        (("F32", "F32"), {"dtype": "bfloat16"}, "bfloat16"),
        (("F32", "F32"), {"dtype": "bfloat16", "out_dtype": "float16"}, "float16"),
        (("BF16", "BF16"), {"out_dtype": "float32"}, "float32"),
    ],
)
def test_dtypes_of_what_is_written(dtypes, settings, written, hollow):
    models = [hollow(name, dtype=dtype) for name, dtype in zip("ab", dtypes, strict=True)]
    found = plan(recipe("linear", models, **settings))
    assert {task.out.dtype.title for task in found.tasks} == {written}
    assert config(found)["torch_dtype"] == written


def test_integers_keep_their_dtype(hollow):
    name = "model.position_ids"
    dtypes = dict.fromkeys(llama_shapes(llama_config()), "BF16") | {name: "I64"}
    models = [hollow(who, extra={name: (1, 64)}, dtype=dtypes) for who in "ab"]
    found = plan(recipe("linear", models, dtype="float16"))
    (task,) = [task for task in found.tasks if task.out.name == name]
    assert (task.out.dtype.name, task.identical) == ("I64", True)


def test_integers_and_floats_are_not_mixed(hollow):
    name = "model.position_ids"
    shapes = dict.fromkeys(llama_shapes(llama_config()), "BF16")
    models = [
        hollow(who, extra={name: (1, 64)}, dtype=shapes | {name: kind}) for who, kind in (("a", "I64"), ("b", "F32"))
    ]
    with pytest.raises(UnsupportedError, match="which this version cannot merge"):
        plan(recipe("linear", models))


# Counts and shards


def test_bytes_are_counted_before_anything_is_read(hollow):
    models = [hollow("a"), hollow("b", dtype="F32")]
    found = plan(recipe("linear", models, dtype="float16"))
    entries = sum(task.out.count for task in found.tasks)
    assert found.read_bytes == entries * (SIZES["BF16"] + SIZES["F32"])
    assert found.write_bytes == entries * SIZES["F16"]
    assert found.memory.peak <= PlanOptions().shard_bytes


@pytest.mark.parametrize("limit", [0, 1, 5_000, 20_000, 10**9])
def test_shards_keep_their_limit(limit, llamas):
    found = plan(recipe("passthrough", [llamas / "a"]), shard_bytes=limit)
    sizes = [[spec.nbytes for spec in shard.specs] for shard in found.shards]
    assert sum(map(sum, sizes)) == found.write_bytes
    assert all(limit == 0 or sum(size) <= limit or len(size) == 1 for size in sizes)
    assert len(sizes) == (1 if limit in (0, 10**9) else len(sizes))
    assert (len(sizes) > 1) == (0 < limit < found.write_bytes)


def test_layers_that_config_json_cannot_tell_apart_are_refused(hollow):
    """Every second layer attends to everything: two such layers side by side have no period."""
    model = hollow("a", sliding_window_pattern=2)
    slices = [piece((model, 0, 2)), piece((model, 1, 3))]
    with pytest.raises(IncompatibleModelsError, match="cannot describe these layers: `sliding_window_pattern: 2`"):
        plan(recipe("passthrough", slices=slices))
