from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mergekit.plan import Plan, plan_merge
from mergekit.report import model_card

FORMS = {
    "apache": "---\nlicense: apache-2.0\ntags: [a]\n---\n# A\n",
    "apache-crlf": "---\r\nlanguage: de\r\nlicense: apache-2.0\r\n---\r\n# B\r\n",
    "mit": "---\nlicense: mit\n---\n",
    "own-x": "---\nlicense: other\nlicense_name: x\nlicense_link: LICENSE\n---\n",
    "own-y": "---\nlicense: other\nlicense_name: y\nlicense_link: LICENSE\n---\n",
    "name-only": "---\nlicense_name: x\n---\n",
    "silent": "---\ntags: [a]\n---\n",
    "plain": "# A model\n---\nlicense: mit\n---\n",
    "broken": "---\nlicense: [mit\n---\n",
    "deep": "---\nlicense: " + "[" * 400 + "\n---\n",
    "date": "---\nlicense: mit\nday: 2024-99-99\n---\n",
    "listed": "---\n- license: mit\n---\n",
}


def planned(recipe: dict[str, object]) -> Plan:
    return plan_merge(yaml.safe_dump(recipe, sort_keys=False))


def front_matter(card: str) -> dict[str, object]:
    match = re.match(r"---\n(.*?\n)---\n\n# ", card, re.DOTALL)
    assert match, card
    found = yaml.safe_load(match[1])
    assert list(found) == sorted(found)
    return found


def linear(*models: Path) -> dict[str, object]:
    return {"merge_method": "linear", "models": [{"model": str(model)} for model in models]}


def test_sections_of_a_card(recipe_of):
    recipe = recipe_of("ties")
    card = model_card(planned(recipe), "My merge")
    assert front_matter(card) == {"library_name": "transformers", "tags": ["mergekit", "merge"]}
    headings = re.findall(r"^#+ .*$", card.split("```")[0], re.MULTILINE)
    assert headings == ["# My merge", "## Merge details", "### Merge method", "### Models", "### Configuration"]
    assert f"the [TIES](https://arxiv.org/abs/2306.01708) method, with `{recipe['base_model']}` as base." in card
    assert [line for line in card.splitlines() if line.startswith("* ")] == [
        f"* `{entry['model']}`" for entry in recipe["models"]
    ]
    assert card.endswith("\n```\n")


def test_slerp_lists_both_ends_and_linear_names_no_base(recipe_of):
    slerp, linear = recipe_of("slerp"), recipe_of("linear")
    card = model_card(planned(slerp), "x")
    assert f"* `{slerp['base_model']}`\n* `{slerp['models'][0]['model']}`\n" in card
    linear["base_model"] = linear["models"][0]["model"]
    card = model_card(planned(linear), "x")
    assert "as base" not in card
    assert card.count("\n* ") == 2


def test_a_method_without_reference_is_not_linked(recipe_of):
    card = model_card(planned(recipe_of("passthrough")), "x")
    assert "This model was merged with the Passthrough method.\n" in card


def test_the_recipe_is_in_the_card_byte_for_byte(recipe_of):
    text = "# ```` four ticks\n" + yaml.safe_dump(recipe_of("linear")) + "# the end, without a newline"
    card = model_card(plan_merge(text), "x")
    assert f"\n`````yaml\n{text}\n`````\n" in card


def test_names_that_can_only_be_on_the_hub_are_base_models(make_model, tmp_path, monkeypatch):
    make_model("org/one", 1)
    make_model("org/two", 2)
    make_model("deep/er/three", 3)
    make_model("four", 4)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    plan = planned(linear(Path("org/two"), Path("org/one"), Path("deep/er/three"), Path("four"), tmp_path / "org/one"))
    assert "base_model" not in front_matter(model_card(plan, "x")), "all of them are folders here"
    monkeypatch.chdir(tmp_path / "elsewhere")
    card = model_card(plan, "x")
    assert front_matter(card)["base_model"] == ["org/two", "org/one"]
    assert front_matter(card)["base_model_relation"] == "merge"
    assert "* [`org/two`](https://huggingface.co/org/two)\n" in card
    assert "* `deep/er/three`\n* `four`\n" in card


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        (("apache", "apache-crlf"), {"license": "apache-2.0"}),
        (("apache", "mit"), {}),
        (("apache", "silent"), {}),
        (("apache", None), {}),
        ((None, "apache"), {}),
        ((None, None), {}),
        (("silent", "silent"), {}),
        (("own-x", "own-x"), {"license": "other", "license_name": "x", "license_link": "LICENSE"}),
        (("own-x", "own-y"), {}),
        (("name-only", "name-only"), {}),
        (("plain", "plain"), {}),
        (("broken", "broken"), {}),
        (("deep", "deep"), {}),
        (("date", "date"), {}),
        (("listed", "listed"), {}),
    ],
)
def test_a_licence_is_kept_if_all_parents_agree(make_model, cards, expected):
    models = [make_model(f"m{i}", i, card=FORMS.get(form)) for i, form in enumerate(cards)]
    front = front_matter(model_card(planned(linear(*models)), "x"))
    assert {key: value for key, value in front.items() if key.startswith("license")} == expected


@pytest.mark.parametrize(
    ("title", "heading"),
    [
        ("my_model-v2.1", "# my_model-v2.1"),
        ("a*b_ [c](d) <i> `e` #", r"# a\*b\_ \[c\](d) \<i\> \`e\` \#"),
        ("two\nlines\r\n---", "# two lines ---"),
        ("größer 大", "# größer 大"),
        ("half \udce4", "# half"),
        ("", "# merge"),
        ("\n", "# merge"),
    ],
)
def test_any_title_is_one_heading(recipe_of, title, heading):
    card = model_card(planned(recipe_of("linear")), title)
    assert front_matter(card)["tags"] == ["mergekit", "merge"]
    assert card.split("\n\n")[1] == heading
    assert card.encode().decode() == card


def test_odd_paths_stay_code(make_model):
    names = ["a `b`", "`x` y", "z\nnew: line", "---", "[l](m)"]
    models = [make_model(f"odd/{name}", 1) for name in names]
    card = model_card(planned(linear(*models)), "x")
    front_matter(card)
    root = models[0].parent
    bullets = [line for line in card.splitlines() if line.startswith("* ")]
    assert bullets == [
        f"* `` {root}/a `b` ``",
        f"* ``{root}/`x` y``",
        f"* `{root}/z new: line`",
        f"* `{root}/---`",
        f"* `{root}/[l](m)`",
    ]
