"""Every mistake that a recipe's structure can have: what is said, where, and what is proposed."""

import pytest
from recipe_samples import error, errors, read

HEAD = "merge_method: linear\nmodels: [{model: a}]\n"


def slices(sources, rest=""):
    return f"merge_method: passthrough\nslices:\n- sources: {sources}\n{rest}"


def parameters(text):
    return HEAD + f"parameters: {{{text}}}\n"


def test_all_mistakes_are_reported_at_once_with_their_lines():
    recipe, findings = read("""\
        merge_metod: dare-ties
        base_model: base
        models:
          - model: a
            wieght: 0.5
          - b
          - model: c
            parameters:
              density: [0.5, {value: 1}]
              layer_range: [0, 4]
        dtype: bf16
        name: mine
    """)
    assert [(str(problem.place), problem.hint) for problem in findings.errors] == [
        ("merge_metod (m.yml:1)", "`merge_method`"),
        ("merge_metod (m.yml:1)", "`dare_ties`"),
        ("models[0].wieght (m.yml:5)", "`parameters: {weight: ...}`"),
        ("models[1] (m.yml:6)", "`- model: b`"),
        ("models[2].parameters.density (m.yml:9)", "writing the plain value as `{value: ...}`, last in the list"),
        ("models[2].parameters.layer_range (m.yml:10)", "moving it out of `parameters`"),
        ("dtype (m.yml:11)", "`bfloat16`"),
    ]
    assert [str(problem.place) for problem in findings.warnings] == ["name (m.yml:12)"]
    assert recipe.method == "dare_ties"
    assert recipe.dtype == "bfloat16"
    assert [str(source.model) for source in recipe.models] == ["a", "b", "c"]
    assert list(recipe.models[0].parameters.settings) == ["weight"]


@pytest.mark.parametrize(
    ("text", "what", "path", "hint"),
    [
        # near misses
        ("merge_metod: linear\nmodels: [{model: a}]", "unknown key `merge_metod`", "merge_metod", "`merge_method`"),
        ("method: linear\nmodels: [{model: a}]", "unknown key `method`", "method", "`merge_method`"),
        ("merge_method: linear\nModels: [{model: a}]", "unknown key `Models`", "Models", "`models`"),
        ("merge_method: linear\nmodel: [{model: a}]", "unknown key `model`", "model", "`models`"),
        (HEAD + "base: b", "unknown key `base`", "base", "`base_model`"),
        (
            slices("[{model: a, layers: [0, 2]}]"),
            "unknown key `layers`",
            "slices[0].sources[0].layers",
            "`layer_range`",
        ),
        (parameters("t: {filter: x, vlaue: 1}"), "unknown key `vlaue`", "parameters.t.vlaue", "`value`"),
        (
            "merge_method: dare-ties\nmodels: [{model: a}]",
            "`dare-ties` is not a merge method",
            "merge_method",
            "`dare_ties`",
        ),
        ("merge_method: TIES\nmodels: [{model: a}]", "`TIES` is not a merge method", "merge_method", "`ties`"),
        (HEAD + "dtype: bf16", "`bf16` is not a dtype", "dtype", "`bfloat16`"),
        (HEAD + "dtype: torch.bf16", "`torch.bf16` is not a dtype", "dtype", "`bfloat16`"),
        (HEAD + "dtype: half", "`half` is not a dtype", "dtype", "`float16`"),
        (HEAD + "out_dtype: fp16", "`fp16` is not a dtype", "out_dtype", "`float16`"),
        (HEAD + "out_dtype: float", "`float` is not a dtype", "out_dtype", "`float32`"),
        (HEAD + "dtype: bfloat_16", "`bfloat_16` is not a dtype", "dtype", "`bfloat16`"),
        (HEAD + "on_mising: base", "unknown key `on_mising`", "on_mising", "`on_missing`"),
        (HEAD + "on_missing: bse", "`bse` is not a rule for missing tensors", "on_missing", "`base`"),
        (HEAD + "on_missing: ignore", "`ignore` is not a rule for missing tensors", "on_missing", "`skip`"),
        (
            HEAD + "on_shape_mismatch: corp",
            "is not a rule for tensors of unequal shapes",
            "on_shape_mismatch",
            "`crop`",
        ),
        (
            HEAD + "on_shape_mismatch: [{filter: mlp, value: truncate}]",
            "`truncate` is not a rule for tensors of unequal shapes",
            "on_shape_mismatch[0].value",
            "`crop`",
        ),
        (
            HEAD + "on_shape_mismatch: [{filter: mlp, valeu: crop}]",
            "unknown key `valeu`",
            "on_shape_mismatch[0].valeu",
            "`value`",
        ),
        (
            HEAD + "on_missing: [base, {filter: mlp, value: skip}]",
            "mixes plain values with conditional settings",
            "on_missing",
            "writing the plain value as `{value: ...}`, last in the list",
        ),
        # valid names at the wrong level
        (HEAD + "weight: 1", "`weight` does not belong in the top level", "weight", "`parameters: {weight: ...}`"),
        (
            "merge_method: linear\nmodels: [{model: a, weight: 1}]",
            "`weight` does not belong in an entry of `models`",
            "models[0].weight",
            "`parameters: {weight: ...}`",
        ),
        (
            slices("[{model: a, layer_range: [0, 2]}]", "  merge_method: linear"),
            "`merge_method` does not belong in a slice",
            "slices[0].merge_method",
            "moving it to the top level of the recipe",
        ),
        (
            "merge_method: linear\nmodels: [{model: a, layer_range: [0, 2]}]",
            "`layer_range` does not belong in an entry of `models`",
            "models[0].layer_range",
            "moving it to a source of a slice",
        ),
        (
            parameters("layer_range: [0, 2]"),
            "`layer_range` is not a parameter",
            "parameters.layer_range",
            "moving it out",
        ),
        (
            parameters("merge_method: ties"),
            "`merge_method` is not a parameter",
            "parameters.merge_method",
            "moving it out",
        ),
        (parameters("model: a"), "`model` is not a parameter", "parameters.model", "moving it out"),
        (parameters("sources: []"), "`sources` is not a parameter", "parameters.sources", "moving it out"),
        (HEAD + "tokenizer: {weight: 1}", "`weight` does not belong in a tokenizer setting", "tokenizer.weight", None),
        (HEAD + "layer_rnge: [0, 2]", "`layer_rnge` is not a key of the top level", "layer_rnge", None),
        # values of the wrong type or out of range
        ("merge_method: linear\nmodels: [a/b]", "`a/b` is not an entry of `models`", "models[0]", "`- model: a/b`"),
        ("merge_method: linear\nmodels: a/b", "`a/b` is not a list of models", "models", None),
        ("merge_method: linear\nmodels: [null]", "an empty value is not an entry", "models[0]", None),
        ("merge_method: linear\nmodels: [[a]]", "a list is not an entry of `models`", "models[0]", None),
        ("merge_method: linear\nmodels: [{}]", "`model` is missing from an entry", "models[0]", None),
        ("merge_method: linear\nmodels: [{model: }]", "`model` is empty", "models[0].model", None),
        ("merge_method: linear\nmodels: [{model: ''}]", "the path of a model is empty", "models[0].model", None),
        ("merge_method: linear\nmodels: [{model: a+b+c}]", "`a+b+c` has more than one `+`", "models[0].model", None),
        (
            "merge_method: linear\nmodels: [{model: no}]",
            "`no` is not a model reference",
            "models[0].model",
            '`"no"`, in quotes',
        ),
        (
            "merge_method: linear\nmodels: [{model: {path: a}}]",
            "unknown key `path` in a model reference",
            "models[0].model.path",
            "`model`",
        ),
        (
            "merge_method: linear\nmodels: [{model: a@r, revision: s}]",
            "the model has two revisions, `r` and `s`",
            "models[0]",
            None,
        ),
        ("models: [{model: a}]", "`merge_method` is missing from the top level", "", None),
        ("merge_method:\nmodels: [{model: a}]", "`merge_method` is empty", "merge_method", None),
        (
            "merge_method: ./own.py\nmodels: [{model: a}]",
            "`./own.py` is not a merge method",
            "merge_method",
            "`./file.py:Name`",
        ),
        ("merge_method: zzz\nmodels: [{model: a}]", "`zzz` is not a merge method", "merge_method", None),
        (HEAD + "dtype: int64", "`int64` is not possible", "dtype", None),
        (HEAD + "dtype: [float16]", "a list is not a dtype", "dtype", None),
        (HEAD + "parameters: [weight]", "a list is not a mapping of parameters", "parameters", None),
        (HEAD + "chat_template: ''", "the text is empty", "chat_template", None),
        (HEAD + "on_missing: crop", "`crop` is not possible where there is no tensor", "on_missing", None),
        (HEAD + "on_missing: [base]", "a list is not a rule for missing tensors", "on_missing", None),
        (HEAD + "on_missing: []", "an empty list is not a rule for missing tensors", "on_missing", None),
        (HEAD + "on_missing: true", "`true` is not a rule for missing tensors", "on_missing", None),
        (HEAD + "on_missing: {filter: mlp}", "`value` is missing from a conditional", "on_missing", None),
        (
            HEAD + "on_shape_mismatch: [{value: [crop, base]}]",
            "a list is not a rule",
            "on_shape_mismatch[0].value",
            None,
        ),
        (parameters("on_missing: base"), "`on_missing` is not a parameter", "parameters.on_missing", "moving it out"),
        (parameters("t: null"), "an empty value is not a setting", "parameters.t", None),
        (parameters("t: [1, null]"), "an empty value is not a value", "parameters.t[1]", "leaving it out"),
        (parameters("t: [1, [2]]"), "a list is not a value", "parameters.t[1]", None),
        (parameters("t: [1, {value: 2}]"), "a setting mixes plain values", "parameters.t", "writing the plain value"),
        (parameters("t: .nan"), "`.nan` is not finite", "parameters.t", None),
        (parameters("t: [{value: [1, -.inf]}]"), "`-.inf` is not finite", "parameters.t[0].value[1]", None),
        (parameters("t: {filter: mlp}"), "`value` is missing from a conditional setting", "parameters.t", None),
        (parameters("t: {value: }"), "`value` is empty", "parameters.t.value", None),
        (
            parameters("t: {value: {value: 1}}"),
            "a mapping is not a value or a list of values",
            "parameters.t.value",
            None,
        ),
        (parameters("t: {value: 1, filter: [a, b]}"), "a list is not a filter", "parameters.t.filter", None),
        (parameters("t: {value: 1, filter: yes}"), "`yes` is not a filter", "parameters.t.filter", '`"yes"`'),
        # slices
        (slices("[{model: a}]"), "`layer_range` is missing from a source", "slices[0].sources[0]", None),
        (
            slices("[{model: a, layer_range: [2, 2]}]"),
            "`[2, 2]` is not a range",
            "slices[0].sources[0].layer_range",
            None,
        ),
        (
            slices("[{model: a, layer_range: [4, 2]}]"),
            "`[4, 2]` is not a range",
            "slices[0].sources[0].layer_range",
            "`[2, 4]`",
        ),
        (slices("[{model: a, layer_range: [-1, 2]}]"), "`[-1, 2]` is not", "slices[0].sources[0].layer_range", None),
        (
            slices("[{model: a, layer_range: [0, 1, 2]}]"),
            "`[0, 1, 2]` is not",
            "slices[0].sources[0].layer_range",
            None,
        ),
        (slices("[{model: a, layer_range: [0, 2.5]}]"), "`[0, 2.5]` is not", "slices[0].sources[0].layer_range", None),
        (slices("[{model: a, layer_range: [no, 2]}]"), "`[no, 2]` is not", "slices[0].sources[0].layer_range", None),
        (slices("[{model: a, layer_range: 0-4}]"), "`0-4` is not a range", "slices[0].sources[0].layer_range", None),
        (slices("[]"), "a slice has no sources", "slices[0]", None),
        (slices(""), "`sources` is empty", "slices[0].sources", None),
        (
            slices("[{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 3]}]"),
            "different numbers of layers: 4 of `a`, 3 of `b`",
            "slices[0]",
            None,
        ),
        (
            slices("[{model: a, layer_range: [0, 2]}, {model: ./a/, layer_range: [2, 4]}]"),
            "the model is listed twice: `a`",
            "slices[0].sources[1]",
            "removing one",
        ),
        (
            "merge_method: linear\nmodels: [{model: a}, {model: a}]",
            "the model is listed twice: `a`",
            "models[1]",
            "removing one",
        ),
        # which of models, slices and modules
        ("merge_method: linear", "there is nothing to merge", "", "`models:`"),
        ("merge_method: linear\nmodels: []\nslices:\nmodules: {}", "there is nothing to merge", "", None),
        (HEAD + "modules: {x: {models: [{model: a}]}}", "`models` and `modules` are given together", "", None),
        (
            slices("[{model: a, layer_range: [0, 2]}]", "models: [{model: b}]"),
            "`models` and `slices` are given together",
            "",
            "removing `models`",
        ),
        (
            slices("[{model: a, layer_range: [0, 2]}]", "models: [{model: a, parameters: {scale: 1}}]"),
            "`models` and `slices` are given together",
            "",
            "removing `models`",
        ),
        ("merge_method: linear\nmodules: {x: {}}", "there is nothing to merge", "modules.x", None),
        # tokenizer
        (HEAD + "tokenizer: union", "`union` is not a tokenizer setting", "tokenizer", "`{source: union}`"),
        (
            HEAD + "tokenizer: {}\ntokenizer_source: base",
            "`tokenizer` and `tokenizer_source` are both given",
            "tokenizer_source",
            "`tokenizer: {source: base}`",
        ),
        (HEAD + "tokenizer_source: a@", "the revision of `a` is empty", "tokenizer_source", None),
        (
            HEAD + "tokenizer: {pad_to_multiple_of: 0}",
            "`0` is not a whole number from 1",
            "tokenizer.pad_to_multiple_of",
            None,
        ),
        (
            HEAD + "tokenizer: {tokens: {x: {force: maybe}}}",
            "`maybe` is not true or false",
            "tokenizer.tokens.x.force",
            None,
        ),
        (
            HEAD + "tokenizer: {tokens: {x: {source: zero}}}",
            "`zero` alone would be the name of a model",
            "tokenizer.tokens.x.source",
            None,
        ),
        (
            HEAD + "tokenizer: {tokens: {x: {source: {kind: zer}}}}",
            "`zer` is not a kind",
            "tokenizer.tokens.x.source.kind",
            "`zero`",
        ),
        (
            HEAD + "tokenizer: {tokens: {x: {source: {kind: zero, model: a}}}}",
            "a zero row has no model",
            "tokenizer.tokens.x.source",
            None,
        ),
        (
            HEAD + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}",
            "a row of another token is given by `model`",
            "tokenizer.tokens.x.source",
            None,
        ),
        (
            HEAD + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token: t, token_id: 1}}}}",
            "a row of another token is given by `model` and `token` and `token_id`",
            "tokenizer.tokens.x.source",
            None,
        ),
        (
            HEAD + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: -1}}}}",
            "`-1` is not a token id",
            "tokenizer.tokens.x.source.token_id",
            None,
        ),
        (
            HEAD + "tokenizer: {tokens: {x: {source: {model: a, token: t}}}}",
            "`kind` is missing",
            "tokenizer.tokens.x.source",
            None,
        ),
        # recipes for other tools
        ("merge_method: moe\nmodels: [a]", "mixture-of-experts recipes are built by mergekit-moe", "", None),
        ("base_model: a\nexperts: []\ngate_mode: x", "mixture-of-experts recipes are built by mergekit-moe", "", None),
        ("genome: {}\ntasks: []", "evolution recipes are run by mergekit-evolve", "", None),
    ],
)
def test_a_single_mistake(text, what, path, hint):
    problem = error(text)
    assert what in problem.what
    assert problem.place.path == path
    assert problem.place.file == "m.yml"
    assert problem.place.line >= 1
    if hint:
        assert hint in (problem.hint or "")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (HEAD + "name: mine", "unknown key `name` in the top level of the recipe: it has no effect"),
        (
            slices("[{model: a, layer_range: [0, 2]}]", "  residual_weight: 1"),
            "unknown key `residual_weight` in a slice",
        ),
        ("merge_method: linear\nmodels: [{model: a, comment: x}]", "unknown key `comment` in an entry of `models`"),
        (HEAD + "tokenizer: {flavour: x}", "unknown key `flavour` in a tokenizer setting"),
        (parameters("t: {value: 1, comment: x}"), "unknown key `comment` in a conditional setting"),
        (
            "merge_method: linear\nmodels: [{model: {model: a, comment: x}}]",
            "unknown key `comment` in a model reference",
        ),
    ],
)
def test_keys_that_resemble_nothing_are_warnings(text, what):
    recipe, findings = read(text)
    assert recipe is not None
    assert findings.errors == []
    (warning,) = findings.warnings
    assert what in warning.what
    assert warning.expected.startswith("one of `")


def test_a_warning_is_given_once_per_name():
    _, findings = read("merge_method: linear\nmodels: [{model: a, x9: 1}, {model: b, x9: 1}, {model: c, y9: 1}]")
    assert [str(warning.place) for warning in findings.warnings] == ["models[0].x9 (m.yml:2)", "models[2].y9 (m.yml:2)"]


def test_leftovers_among_parameters_are_settings():
    recipe, findings = read(parameters("dtype: float16, filter: x, embed_slerp: true, dare_density: 1, wieght: 2"))
    assert findings.errors == findings.warnings == []
    assert len(recipe.parameters.settings) == 5


def test_what_is_missing_does_not_hide_what_is_wrong():
    found = errors("models: [{model: a@}, {model: b, dtype: x}]")
    assert [problem.place.path for problem in found] == ["", "models[0].model", "models[1].dtype"]


def test_unreadable_parts_leave_a_recipe_to_look_at():
    recipe, findings = read(slices("[{model: a, layer_range: [4, 2], parameters: {t: null, scale: 1}}]"))
    assert len(findings.errors) == 2
    assert recipe.slices[0].sources[0].layers is None
    assert list(recipe.slices[0].sources[0].parameters.settings) == ["scale"]


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: linear\nmodels: [{model: a@}]",
        "merge_method: zzz\nmodels: [{model: a}]",
        HEAD + "base_model: a@",
        "merge_method: linear",
        slices("[{model: a@, layer_range: [0, 2]}]"),
    ],
)
def test_there_is_no_recipe_without_the_indispensable(text):
    recipe, findings = read(text)
    assert recipe is None
    assert findings.errors
