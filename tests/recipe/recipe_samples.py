"""Names and recipes that several test files read."""

from textwrap import dedent

from mergekit.errors import Findings, Problem
from mergekit.recipe import Recipe, Vocabulary, read_recipe

VOCABULARY = Vocabulary(
    methods=frozenset({"linear", "slerp", "ties", "dare_ties", "dare_linear", "passthrough", "task_arithmetic"}),
    parameters=frozenset({"weight", "density", "normalize", "lambda", "t", "scale", "int8_mask", "normalize_weights"}),
)

VALID = {
    "models": """
        merge_method: linear
        dtype: torch.bfloat16
        out_dtype: float32
        chat_template: auto
        models:
          - model: org/a
            revision: v1
            parameters: {weight: 0.5}
          - model: org/b@main+org/lora@v2
            parameters: {weight: [0, 0.5, 1e-1]}
          - model: {model: {path: "c@+d", revision: r}, lora: e, override_architecture: LlamaForCausalLM}
        """,
    "settings": """
        merge_method: ties
        base_model: base
        models:
          - model: a
            parameters:
              weight: {filter: mlp, value: 0.3}
              density:
                - {filter: q_proj, value: [0.2, 1]}
                - {value: [], filter: null}
                - value: "1e-3"
          - model: b
            parameters:
        parameters: {normalize: true, dtype: float16, filter: x, anything: text, empty: []}
        """,
    "slices": """
        merge_method: passthrough
        slices:
          - sources:
              - {model: a, layer_range: [0, 4], parameters: {scale: 2}}
              - {model: C:/models/b@rev, revision: rev, layer_range: [4, 8]}
            base_model: a
            parameters: {t: 0.5}
          - sources: [{model: a, layer_range: [2, 3]}]
        models: []
        """,
    "modules": """
        merge_method: ./own.py:Method
        modules:
          text.decoder: {models: [{model: a}], parameters: {weight: 1}}
          vision: {slices: [{sources: [{model: b, layer_range: [0, 2]}]}]}
        """,
    "tokenizer": """
        merge_method: linear
        models: [{model: a}, {model: b}]
        tokenizer:
          source: base
          pad_to_multiple_of: 64
          tokens:
            <|im_start|>: {source: b, force: true}
            <a.b>: {source: {kind: model_token, model: b, token: x}}
            <c>: {source: {kind: model_token, model: {model: b, lora: l}, token_id: 0}}
            <d>: {source: {kind: zero}}
            <e>: {source: {model: {path: q}}}
            <f>: {}
        """,
    "tokenizer defaults": "merge_method: linear\nmodels: [{model: a}]\ntokenizer: {}\n",
    "legacy tokenizer": "merge_method: linear\nmodels: [{model: a}]\ntokenizer_source: model:org/x\n",
    "rules": """
        merge_method: linear
        models: [{model: a}, {model: b}]
        on_missing: base
        on_shape_mismatch:
          - {filter: embed_tokens, value: crop}
          - value: skip
        """,
    "one case of a rule": """
        merge_method: linear
        models: [{model: a}, {model: b}]
        on_missing: {filter: mlp, value: skip}
        on_shape_mismatch:
        """,
    "repeated models": """
        merge_method: slerp
        models: [{model: ./a/}, {model: b}]
        slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]}]
        """,
}


def read(text: str, file: str | None = "m.yml") -> tuple[Recipe | None, Findings]:
    return read_recipe(dedent(text), file=file, vocabulary=VOCABULARY)


def valid(text: str) -> Recipe:
    recipe, findings = read(text)
    assert findings.errors == []
    assert findings.warnings == []
    assert recipe is not None
    return recipe


def errors(text: str) -> list[Problem]:
    return read(text)[1].errors


def error(text: str) -> Problem:
    """Return the only error of a recipe."""
    (problem,) = errors(text)
    return problem
