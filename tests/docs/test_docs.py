"""The tutorials' recipes and commands are run as they stand; every guide is carried out by a test."""

import json

import pytest
from pages import ROOT, carry_out, run

TUTORIALS = sorted(page.name for page in (ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorial_runs(page, here):
    assert carry_out(f"tutorials/{page}", here)


def test_first_merge_leaves_what_it_promises(here):
    assert run("mergekit-yaml examples/recipes/four_languages.yml out", here).returncode == 0
    names = {file.name for file in (here / "out").iterdir()}
    assert names >= {"model.safetensors", "config.json", "README.md", "mergekit_config.yml", "merge_report.json"}
    assert (here / "out" / "mergekit_config.yml").read_text(encoding="utf-8") == (
        ROOT / "examples" / "recipes" / "four_languages.yml"
    ).read_text(encoding="utf-8")


def test_the_schema_for_editors_is_current():
    from mergekit.plan import VOCABULARY
    from mergekit.recipe import recipe_schema

    kept = json.loads((ROOT / "docs" / "reference" / "recipe.schema.json").read_text(encoding="utf-8"))
    assert kept == recipe_schema(VOCABULARY), "run `mergekit schema > docs/reference/recipe.schema.json`"


NOT_RUN = {
    "hub.md": "needs the hub; its commands are those of tests/hub",
    "python.md": "is run by tests/api/test_api_package.py",
}
"""Guides whose commands cannot be carried out here."""


def test_every_guide_is_carried_out():
    guides = {page.name for page in (ROOT / "docs" / "guides").glob("*.md")}
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests" / "docs").glob("test_docs_*.py"))
    assert {guide for guide in guides if f'"guides/{guide}"' not in tests} == set(NOT_RUN)
