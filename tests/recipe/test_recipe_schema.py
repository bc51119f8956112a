from textwrap import dedent

import jsonschema
import pytest
import yaml
from recipe_samples import VALID, VOCABULARY, errors

from mergekit.recipe import recipe_schema

SCHEMA = recipe_schema(VOCABULARY)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
HEAD = "merge_method: linear\nmodels: [{model: a}]\n"


def accepted(text):
    return VALIDATOR.is_valid(yaml.safe_load(dedent(text)))


def described(schema, path="recipe"):
    """Yield the path of every property with whether it is described."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}", "description" in inner
        yield from described(inner, f"{path}.{name}")
    for part in schema.get("anyOf", []):
        yield from described(part, path)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from described(schema[key], path)


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_key_is_described():
    found = dict(described(SCHEMA))
    assert len(found) > 30
    assert all(found.values())


def test_names_come_from_the_vocabulary():
    assert SCHEMA["$defs"]["method"]["anyOf"][0]["enum"] == sorted(VOCABULARY.methods)
    assert set(SCHEMA["$defs"]["parameters"]["properties"]) == VOCABULARY.parameters


@pytest.mark.parametrize("name", VALID)
def test_it_accepts_valid_recipes(name):
    VALIDATOR.validate(yaml.safe_load(dedent(VALID[name])))


@pytest.mark.parametrize(
    "text",
    [
        "models: [{model: a}]",
        "merge_method: linear",
        "merge_method: lineer\nmodels: [{model: a}]",
        "merge_method: linear\nmodel: [{model: a}]",
        "merge_method: linear\nmodels: [a]",
        "merge_method: linear\nmodels: [{}]",
        "merge_method: linear\nmodels: [{model: a+b+c}]",
        "merge_method: linear\nmodels: [{model: a@b@c}]",
        "merge_method: linear\nmodels: [{model: a, weight: 1}]",
        "merge_method: linear\nmodels: [{model: {path: a}}]",
        "merge_method: linear\nslices: [{sources: [{model: a}]}]",
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1, 2]}]}]",
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [-1, 2]}]}]",
        HEAD + "dtype: bf16",
        HEAD + "parameters: {t: null}",
        HEAD + "parameters: {t: [1, {value: 2}]}",
        HEAD + "parameters: {t: {filter: x}}",
        HEAD + "parameters: {t: {value: 1, filter: [x]}}",
        HEAD + "on_missing: crop",
        HEAD + "on_missing: [base]",
        HEAD + "on_shape_mismatch: {filter: mlp}",
        HEAD + "on_shape_mismatch: {filter: mlp, value: 0.5}",
        HEAD + "tokenizer: union",
        HEAD + "tokenizer: {pad_to_multiple_of: 0}",
        HEAD + "tokenizer: {tokens: {x: {source: {kind: nothing}}}}",
    ],
)
def test_it_refuses_what_the_reader_refuses(text):
    assert not accepted(text)
    assert errors(text)
