"""What cannot be merged is refused while planning: all mistakes at once, with lines, before any weight is read."""

import json
import os

import pytest
from tiny_checkpoints import llama_config, llama_shapes, piece, recipe, write_hollow, write_model

from mergekit.errors import (
    IncompatibleModelsError,
    MergekitError,
    MissingTensorError,
    RecipeError,
    UnsupportedError,
)
from mergekit.plan import PlanOptions, plan_merge


def plan(text, **options):
    return plan_merge(text, file="merge.yml", options=PlanOptions(**options))


def problems(text, **options):
    with pytest.raises(RecipeError) as caught:
        plan(text, **options)
    assert caught.value.exit_code == 3
    return caught.value.problems


def lines(found):
    return {problem.place.line for problem in found}


# All mistakes at once

FIVE = """\
merge_method: ties
base_model: {root}/base
models:
- model: {root}/a
  parameters:
    densty: 0.5
- model: {root}/b
  parameters:
    density: 1.5
parameters:
  lambda: strong
  weight:
  - filter: self_atn
    value: 0.5
  - value: 1
dtype: bf16
"""


def test_five_mistakes_are_told_at_once_each_with_its_line(llamas):
    found = problems(FIVE.format(root=llamas))
    assert {problem.place.line: problem.what for problem in found}.keys() == {6, 9, 11, 13, 16}
    assert len(found) == 5
    with pytest.raises(RecipeError) as caught:
        plan(FIVE.format(root=llamas))
    message = str(caught.value)
    assert message.startswith("5 problems in the recipe")
    for line, word in {6: "densty", 9: "1.5", 11: "strong", 13: "self_atn", 16: "bf16"}.items():
        assert f"merge.yml:{line}" in message
        assert word in message


OTHERS = """\
merge_method: slerp
base_modle: {root}/base
slices:
- sources:
  - model: {root}/a
    layer_range: [0, 9]
  - model: {root}/b
    layer_range: [0, 9]
  parameters:
    t: 1
- sources:
  - model: {root}/a
    layer_range: [0, 2]
  - model: {root}/b
    layer_range: [0, 3]
- sources:
  - model: {root}/c
    layer_range: [0, 2]
chat_template: chatmll
"""


def test_mistakes_of_structure_are_told_together_with_those_of_meaning(llamas):
    found = problems(OTHERS.format(root=llamas))
    assert {2, 6, 8, 11, 16, 19} <= lines(found)
    assert len(found) < 10, "one message for one mistake"


def test_models_that_are_not_there_are_told_together_with_other_mistakes(llamas):
    text = f"""\
merge_method: linear
models:
- model: {llamas}/nobody
  parameters: {{wieght: 1}}
- model: {llamas}/aa
  parameters: {{weight: none}}
- model: {llamas}/a+{llamas}/lora
"""
    found = problems(text)
    assert lines(found) == {3, 4, 5, 6, 7}
    assert "there is no such folder" in str(found)


# Models that do not go together


@pytest.fixture
def reads(monkeypatch):
    """For every positioned read where it ends, and where the header of that file ends."""
    seen = []
    preadv = os.preadv

    def noting(descriptor, buffers, offset):
        header = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
        seen.append((offset + sum(map(len, buffers)), header))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", noting)
    return seen


def assert_only_headers(reads):
    assert reads
    assert all(end <= header for end, header in reads)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"width": 64}, "models are not compatible: hidden_size 32 and 64"),
        ({"layers": 6}, "models are not compatible: num_hidden_layers 4 and 6"),
        ({"inner": 96}, "models are not compatible: intermediate_size 48 and 96"),
        ({"rows": 80}, "models are not compatible: vocab_size 64 and 80"),
    ],
)
def test_unequal_models_are_refused_by_what_differs(settings, start, hollow, reads):
    hollow("one")
    other = hollow("other", **settings)
    with pytest.raises(IncompatibleModelsError) as caught:
        plan(recipe("linear", [other.parent / "one", other]))
    assert str(caught.value).startswith(start)
    assert caught.value.exit_code == 4
    assert_only_headers(reads)


def test_real_sizes_are_refused_as_fast_as_tiny_ones(hollow, reads):
    big = hollow("big", width=4096, inner=11008, layers=32, rows=32000)
    other = hollow("other", width=3584, inner=11008, layers=32, rows=32000)
    with pytest.raises(IncompatibleModelsError) as caught:
        plan(recipe("linear", [big, other]))
    assert str(caught.value).startswith("models are not compatible: hidden_size 4096 and 3584 (")
    assert_only_headers(reads)


def test_a_plan_of_equal_models_reads_headers_only(llamas, reads):
    plan(recipe("ties", [llamas / "a", llamas / "b"], base_model=str(llamas / "base")))
    assert_only_headers(reads)


def test_another_architecture_is_refused_by_its_name(hollow, tmp_path):
    llama = hollow("llama")
    shapes = {"wte.weight": (64, 32), "ln_f.weight": (32,)}
    shapes |= {f"h.{layer}.attn.c_attn.weight": (32, 96) for layer in range(4)}
    shapes |= {f"h.{layer}.mlp.c_fc.weight": (32, 128) for layer in range(4)}
    config = {"model_type": "gpt2", "n_layer": 4, "n_embd": 32, "vocab_size": 64}
    write_hollow(tmp_path / "gpt2", shapes, config)
    with pytest.raises(MergekitError) as caught:
        plan(recipe("linear", [llama, tmp_path / "gpt2"]))
    assert str(caught.value).startswith("models are not compatible: model_type llama and gpt2")


def test_equal_tensors_under_two_names_of_architecture_are_merged_with_a_warning(hollow):
    one, two = hollow("one"), hollow("two", model_type="mistral")
    found = plan(recipe("linear", [one, two])).findings
    assert [problem.what for problem in found.warnings] == [
        "the models call themselves different architectures: model_type llama and mistral"
    ]


def test_a_vocabulary_that_differs_can_be_cropped(hollow):
    one, two = hollow("one"), hollow("two", rows=80)
    text = recipe("linear", [two, one])
    with pytest.raises(IncompatibleModelsError, match="--unsafe-truncate-embeddings"):
        plan(text)
    cropped = plan(text, crop_vocabulary=True)
    shapes = {task.out.name: task.out.shape for task in cropped.tasks}
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (64, 32)
    assert json.loads(cropped.texts["config.json"])["vocab_size"] == 64
    assert len(cropped.findings.warnings) == 2
    assert "cut to 64 rows" in str(cropped.findings.warnings[0])
    assert {
        operand.view.nbytes for task in cropped.tasks for operand in task.operands if "lm_head" in task.out.name
    } == {64 * 32 * 2}


def test_cropping_does_not_hide_other_differences(hollow):
    one, two = hollow("one"), hollow("two", rows=80, inner=96)
    with pytest.raises(IncompatibleModelsError, match="intermediate_size 48 and 96"):
        plan(recipe("linear", [one, two]), crop_vocabulary=True)


def test_a_missing_tensor_is_named_with_its_model(hollow):
    one, two = hollow("one"), hollow("two", without={"model.layers.2.mlp.up_proj.weight"})
    with pytest.raises(MissingTensorError) as caught:
        plan(recipe("linear", [one, two]))
    assert "`model.layers.2.mlp.up_proj.weight`" in str(caught.value)
    assert str(two) in str(caught.value)


def test_an_extra_tensor_is_not_dropped(hollow):
    one, two = hollow("one"), hollow("two", extra={"model.layers.2.self_attn.q_proj.bias": (32,)})
    for order in ([one, two], [two, one]):
        with pytest.raises(MissingTensorError, match=r"q_proj\.bias") as caught:
            plan(recipe("linear", order))
        assert str(one) in str(caught.value)


# What this version does not do


def test_a_model_as_the_adapter_of_another(llamas):
    (problem,) = problems(recipe("linear", [f"{llamas}/a+{llamas}/b"]))
    assert "no adapter_config.json in the folder" in problem.what
    assert problem.hint == f"`{llamas}/b` as a model of its own: it is no adapter"


def test_unknown_methods(llamas):
    (problem,) = problems(recipe("tiess", [llamas / "a"], base_model=str(llamas / "base")))
    assert "tiess" in problem.what
    assert "`ties`" in problem.hint


@pytest.mark.parametrize("setting", [{"tokenizer_source": "union"}, {"tokenizer": {"source": "base"}}])
def test_tokenizer_settings(setting, llamas):
    (problem,) = problems(recipe("linear", [llamas / "a"], **setting))
    assert problem.what == f"{llamas / 'a'} has no tokenizer"


@pytest.fixture
def quantised(hollow):
    return hollow("quantised", quantization_config={"quant_method": "gptq"})


def test_quantised_models(quantised, hollow):
    with pytest.raises(UnsupportedError, match=r"is quantised \(gptq\)"):
        plan(recipe("linear", [hollow("plain"), quantised]))


def test_a_quantised_model_can_be_copied(quantised):
    assert plan(recipe("passthrough", [quantised])).tasks


def test_float8_weights(tmp_path):
    import torch

    config = llama_config(layers=1)
    for name in "ab":
        tensors = {key: torch.zeros(shape).to(torch.float8_e4m3fn) for key, shape in llama_shapes(config).items()}
        write_model(tmp_path / name, tensors, config)
    merged = plan(recipe("linear", [tmp_path / "a", tmp_path / "b"], dtype="bfloat16"))
    assert {task.out.dtype.title for task in merged.tasks} == {"bfloat16"}
    copied = plan(recipe("passthrough", [tmp_path / "a"]))
    assert {task.out.dtype.title for task in copied.tasks} == {"float8_e4m3fn"}


# Slices and bases


def test_a_layer_range_beyond_the_model(llamas):
    (problem,) = problems(recipe("passthrough", slices=[piece((llamas / "a", 2, 6))]))
    assert "[2, 6) goes beyond the 4 layers" in problem.what
    assert problem.place.line == 5


@pytest.mark.parametrize("last", [2, 1])
def test_a_layer_range_without_layers(last, llamas):
    assert problems(recipe("passthrough", slices=[piece((llamas / "a", 2, last))]))


def test_methods_on_deltas_need_a_base(llamas):
    (problem,) = problems(recipe("ties", [llamas / "a", llamas / "b"]))
    assert problem.what == "ties needs a base model"


def test_the_base_must_be_in_every_slice(llamas):
    slices = [piece((llamas / "base", 0, 2), (llamas / "a", 0, 2)), piece((llamas / "b", 2, 4))]
    found = problems(recipe("task_arithmetic", slices=slices, base_model=str(llamas / "base")))
    assert [problem.what for problem in found] == [
        f"the base model {llamas / 'base'} is not among the sources of this slice"
    ]


@pytest.mark.parametrize(
    ("method", "who", "settings"),
    [
        ("slerp", "abc", {"parameters": {"t": 0.5}}),
        ("slerp", "a", {"parameters": {"t": 0.5}}),
        ("passthrough", "ab", {}),
    ],
)
def test_methods_say_how_many_models_they_take(method, who, settings, llamas):
    base = str(llamas / "base") if method == "slerp" and who == "abc" else None
    found = problems(recipe(method, [llamas / name for name in who], base_model=base, **settings))
    assert any(method in problem.what for problem in found)


def test_unknown_modules(llamas):
    modules = {"vision_tower": {"models": [{"model": str(llamas / "a")}]}}
    (problem,) = problems(recipe("passthrough", modules=modules))
    assert problem.what == "the model has no module `vision_tower`"


# What a reader with fresh eyes found


def test_a_range_far_beyond_the_model_is_refused_at_once(llamas):
    (problem,) = problems(
        f"""\
merge_method: passthrough
slices:
- sources:
  - model: {llamas}/a
    layer_range: [0, 99999999999]
"""
    )
    assert "goes beyond the 4 layers" in problem.what
    assert problem.place.line == 5


def test_a_revision_of_a_local_folder_is_warned_of(llamas):
    found = plan(f"merge_method: passthrough\nmodels:\n- {{model: {llamas}/a, revision: v2}}\n").findings
    (warning,) = found.warnings
    assert "no revisions: v2 has no effect" in warning.what
    assert warning.place.line == 3


def test_a_name_of_the_hub_that_must_not_be_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (problem,) = problems("merge_method: passthrough\nmodels:\n- model: somebody/some-model\n")
    assert "somebody/some-model is neither a folder nor in the cache" in problem.what
    assert "HF_HUB_OFFLINE" in problem.hint
    assert problem.place.line == 3


def test_a_config_that_counts_other_layers_than_there_are_is_warned_of(llamas):
    file = llamas / "a" / "config.json"
    before = file.read_text(encoding="utf-8")
    file.write_text(json.dumps({**json.loads(before), "num_hidden_layers": 7}), encoding="utf-8")
    try:
        found = plan(f"merge_method: passthrough\nmodels:\n- model: {llamas}/a\n").findings
    finally:
        file.write_text(before, encoding="utf-8")
    assert any("has 4 layers, and its config.json says num_hidden_layers 7" in entry.what for entry in found.warnings)
