"""Text that is no recipe at all: one clear error, never an exception."""

import random

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_samples import VALID, error, read

from mergekit.recipe import nodes


def bomb(levels=9, width=9):
    lines = ["l0: &l0 [" + ", ".join("x" * width) + "]"]
    lines += [f"l{level}: &l{level} [" + ", ".join([f"*l{level - 1}"] * width) + "]" for level in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels=30):
    lines = ["l0: &l0 {a: 1, b: 2}"]
    lines += [f"l{level}: &l{level} {{<<: [*l{level - 1}, *l{level - 1}]}}" for level in range(1, levels)]
    return "\n".join(lines)


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def loader(request, monkeypatch):
    """Both of PyYAML's parsers: a build without libyaml has only the second."""
    monkeypatch.setattr(nodes, "_Loader", getattr(yaml, request.param, yaml.SafeLoader))


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("", "the recipe is empty", None),
        ("# nothing\n", "the recipe is empty", None),
        ("[1, 2]", "a list is not a recipe", 1),
        ("\n\ntext", "`text` is not a recipe", 3),
        ("a: 1\nb: [\n", "the recipe is not valid YAML", 3),
        ("a: 1\n\tb: 2\n", "the recipe is not valid YAML", 2),
        ("a: 1\nb: *c\n", "the recipe is not valid YAML", 2),
        ("a: 1\n---\nb: 2\n", "the file holds more than one YAML document", 2),
        ("a: &a\n  b: *a\n", "an alias stands inside of what it stands for", None),
        ("a: &a {<<: *a}\n", "an alias stands inside of what it stands for", 1),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "the YAML tag `!!python/object/apply:os.system`", 2),
        ("a: !mine x", "the YAML tag `!mine`", 1),
        ("a: !!set {x}", "the YAML tag `!!set`", 1),
        ("a: 1\n? [b]\n: 2", "a key of a mapping is not text", 2),
        ("<<: [1]", "`<<` takes mappings only", 1),
        ("a: 1\nb: \x07\n", "the recipe is not plain text", 2),
        ("a: 1\nb: \ud800\n", "the recipe is not ", 2),
        ("[" * 20_000, "the recipe is nested more than 100 levels deep", 1),
        ("- " * 20_000, "the recipe is nested more than 100 levels deep", 1),
        ("{a: " * 20_000, "the recipe is nested more than 100 levels deep", 1),
        (bomb(), "the recipe has more than 200,000 values", None),
        (merge_bomb(), "the recipe has more than 200,000 values", None),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else str(value),
)  # fmt: skip
def test_no_recipe(text, what, line):
    problem = error(text)
    assert problem.what.startswith(what)
    if line:
        assert problem.place.line == line


def test_tabs_are_named():
    assert error("a:\n\tb: 2\n").hint == "indenting with spaces: YAML allows no tabs"


def test_duplicate_keys_name_both_lines():
    problem = error("merge_method: linear\nmodels: [{model: a}]\ndtype: float16\ndtype: float32\n")
    assert problem.what == "the key `dtype` is given twice"
    assert str(problem.place) == "dtype (m.yml:4)"
    assert problem.hint == "keeping one of the two; the other is in line 3"


def test_numbers_that_are_none_are_text():
    recipe, findings = read(
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {x: 0x_, y: !!int abc, z: " + "9" * 5000 + "}"
    )
    assert findings.errors == []
    assert recipe.parameters.settings["x"].value == "0x_"


def judged(text):
    recipe, findings = read(text)
    assert recipe is not None or findings.errors
    for problem in [*findings.errors, *findings.warnings]:
        assert problem.what
        assert "None" not in str(problem) or "None" in text
        assert len(problem.what) < 600


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_random_text(text):
    judged(text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab:-,[]{}&*!|>'\"#%@?<\n\t .0~", max_size=80))
def test_random_yaml(text):
    judged(text)


KEYS = st.sampled_from(
    [
        "merge_method",
        "models",
        "slices",
        "modules",
        "base_model",
        "parameters",
        "dtype",
        "tokenizer",
        "tokens",
        "source",
        "kind",
        "model",
        "sources",
        "layer_range",
        "value",
        "filter",
        "weight",
        "wieght",
        "revision",
        "path",
        "lora",
        "force",
        "token_id",
        "x",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 99)
    | st.floats()
    | st.sampled_from(["linear", "a", "a@", "1e1", "zero", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_random_trees_of_known_words(tree):
    judged(yaml.safe_dump(tree))


def mutated(text, chance):
    """Cut, repeat or replace a few characters or lines of a recipe."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        stop = min(len(text), start + chance.choice([0, 1, 1, 2, 5, 30]))
        middle = chance.choice(["", text[start:stop] * 2, chance.choice(":-[]{},&*'\"\n\t 0x~"), "null"])
        text = text[:start] + middle + text[stop:]
    return text


def test_mutated_recipes():
    chance = random.Random(7)
    for _ in range(60):
        for text in VALID.values():
            judged(mutated(text, chance))
