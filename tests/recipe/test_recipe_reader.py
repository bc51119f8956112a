import pytest
from recipe_samples import VALID, read, valid

from mergekit.errors import Place
from mergekit.recipe import (
    Address,
    Case,
    Constant,
    Filtered,
    Gradient,
    ModelRef,
    OtherToken,
    SameToken,
    TokenEntry,
    ZeroRow,
)


def model(text):
    return ModelRef.parse(text)


@pytest.mark.parametrize("name", VALID)
def test_valid_recipes_have_no_findings(name):
    valid(VALID[name])


def test_models():
    recipe = valid(VALID["models"])
    assert recipe.method == "linear"
    assert (recipe.dtype, recipe.out_dtype, recipe.chat_template) == ("bfloat16", "float32", "auto")
    assert [source.model for source in recipe.models] == [
        ModelRef(Address("org/a", "v1")),
        ModelRef(Address("org/b", "main"), Address("org/lora", "v2")),
        ModelRef(Address("c@+d", "r"), Address("e"), "LlamaForCausalLM"),
    ]
    assert recipe.models[0].parameters.settings == {"weight": Constant(0.5)}
    assert recipe.models[1].parameters.settings == {"weight": Gradient((0, 0.5, "1e-1"))}
    assert recipe.models[2].parameters.settings == {}
    assert all(source.layers is None for source in recipe.models)
    assert [source.parameters.path for source in recipe.models] == [f"models[{i}].parameters" for i in range(3)]
    assert recipe.slices == recipe.modules == ()


def test_settings():
    recipe = valid(VALID["settings"])
    assert recipe.models[0].parameters.settings == {
        "weight": Filtered((Case("mlp", Constant(0.3)),)),
        "density": Filtered(
            (Case("q_proj", Gradient((0.2, 1))), Case(None, Gradient(())), Case(None, Constant("1e-3")))
        ),
    }
    assert list(recipe.parameters.settings) == ["normalize", "dtype", "filter", "anything", "empty"]
    assert recipe.base_model == model("base")


def test_rules():
    assert valid(VALID["models"]).rules == {}
    assert valid(VALID["rules"]).rules == {
        "on_missing": Constant("base"),
        "on_shape_mismatch": Filtered((Case("embed_tokens", Constant("crop")), Case(None, Constant("skip")))),
    }
    assert valid(VALID["one case of a rule"]).rules == {"on_missing": Filtered((Case("mlp", Constant("skip")),))}


def test_slices():
    recipe = valid(VALID["slices"])
    first, second = recipe.slices
    assert [(str(source.model), source.layers, source.path) for source in first.sources] == [
        ("a", range(4), "slices[0].sources[0]"),
        ("C:/models/b@rev", range(4, 8), "slices[0].sources[1]"),
    ]
    assert first.sources[0].parameters.settings == {"scale": Constant(2)}
    assert first.base_model == model("a")
    assert first.parameters.settings == {"t": Constant(0.5)}
    assert (second.base_model, second.sources[0].layers, second.path) == (None, range(2, 3), "slices[1]")


def test_modules():
    recipe = valid(VALID["modules"])
    text, vision = recipe.modules
    assert recipe.method == "./own.py:Method"
    assert (text.name, text.path, text.models[0].path) == (
        "text.decoder",
        "modules.text.decoder",
        "modules.text.decoder.models[0]",
    )
    assert text.parameters.settings == {"weight": Constant(1)}
    assert vision.slices[0].sources[0].layers == range(2)
    assert recipe.references() == (model("a"), model("b"))


def test_tokenizer():
    tokenizer = valid(VALID["tokenizer"]).tokenizer
    assert (tokenizer.source, tokenizer.pad_to_multiple_of, tokenizer.path) == ("base", 64, "tokenizer")
    lora = ModelRef(Address("b"), Address("l"))
    assert {text: entry.source for text, entry in tokenizer.tokens.items()} == {
        "<|im_start|>": SameToken(model("b")),
        "<a.b>": OtherToken(model("b"), "x"),
        "<c>": OtherToken(lora, 0),
        "<d>": ZeroRow(),
        "<e>": SameToken(model("q")),
        "<f>": None,
    }
    assert tokenizer.tokens["<|im_start|>"].force
    assert tokenizer.tokens["<f>"] == TokenEntry(None, False, "tokenizer.tokens.<f>")
    assert tokenizer.references() == (model("b"), lora, model("q"))


def test_tokenizer_defaults():
    tokenizer = valid(VALID["tokenizer defaults"]).tokenizer
    assert (tokenizer.source, tokenizer.tokens, tokenizer.pad_to_multiple_of) == ("union", {}, None)
    assert valid("merge_method: linear\nmodels: [{model: a}]\ntokenizer:\n").tokenizer is None


@pytest.mark.parametrize(
    ("text", "source"), [("union", "union"), ("base", "base"), ("x/y@r", model("x/y@r")), ("model:x/y", model("x/y"))]
)
def test_legacy_tokenizer_source(text, source):
    tokenizer = valid(f"merge_method: linear\nmodels: [{{model: a}}]\ntokenizer_source: {text}").tokenizer
    assert (tokenizer.source, tokenizer.path) == (source, "tokenizer_source")


def test_models_that_only_repeat_the_slices_are_left_aside():
    recipe, findings = read(VALID["repeated models"])
    assert recipe.models == ()
    assert len(recipe.slices) == 1
    assert findings.notices == ["`models` only repeats the models of `slices` and is left aside"]


def test_references_are_in_order_without_repetition():
    recipe = valid("""
        merge_method: slerp
        slices:
          - sources: [{model: b, layer_range: [0, 1]}, {model: ./a, layer_range: [0, 1]}]
            base_model: d
          - sources: [{model: a, layer_range: [1, 2]}, {model: c, layer_range: [1, 2]}]
        base_model: c/
    """)
    assert [str(reference) for reference in recipe.references()] == ["c", "b", "a", "d"]


def test_numbers_and_words_are_text_where_text_is_meant():
    recipe = valid("""
        merge_method: linear
        models: [{model: 7, revision: 0123456}, {model: a, revision: 2024-01-02}, {model: b, revision: 12e4}]
        tokenizer: {tokens: {1: {force: yes}, null: {source: a}}}
        parameters: {on: 1}
    """)
    assert [str(source.model) for source in recipe.models] == ["7@0123456", "a@2024-01-02", "b@12e4"]
    assert list(recipe.tokenizer.tokens) == ["1", "null"]
    assert list(recipe.parameters.settings) == ["on"]


def test_anchors_and_merge_keys():
    recipe = valid("""
        merge_method: linear
        models:
          - &first
            model: a
            parameters: &shared {weight: 1, density: 2}
          - {<<: *first, model: b}
          - {model: c, parameters: {<<: [{weight: 5}, *shared], scale: 3}}
    """)
    assert recipe.models[1].model == model("b")
    assert recipe.models[1].parameters.settings == recipe.models[0].parameters.settings
    assert recipe.models[2].parameters.settings == {"weight": Constant(5), "density": Constant(2), "scale": Constant(3)}


def test_places_fall_back_to_what_is_around_them():
    recipe, _ = read("""\
        merge_method: linear
        models:
          - model: a
            parameters:
              weight:
                - filter: mlp
                  value: [1, 2]
          - model: b
    """)
    assert recipe.place("models[0].parameters.weight[0].value[1]") == Place(
        "models[0].parameters.weight[0].value[1]", "m.yml", 7
    )
    assert recipe.place("models[0].parameters.weight[7].value").line == 5
    assert recipe.place("models[1].parameters.density").line == 8
    assert recipe.place("parameters.t").line == 1
    assert recipe.place("").line == 1


def test_the_text_is_kept():
    text = "merge_method: linear # why\nmodels: [{model: a}]\n"
    recipe, _ = read(text, file=None)
    assert (recipe.text, recipe.file) == (text, None)
