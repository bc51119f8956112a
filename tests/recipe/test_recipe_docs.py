"""The recipes in the reference are recipes."""

import re
from pathlib import Path

import pytest
from recipe_samples import valid

import mergekit.recipe
from mergekit.recipe.language import RECIPE
from mergekit.recipe.records import homes

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "recipe.md"
TEXT = REFERENCE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S)


def test_there_are_examples():
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_examples_are_read_without_findings(block):
    recipe = valid(block)
    assert recipe.references()


def test_every_key_is_described():
    missing = [name for name in homes(RECIPE) if f"`{name}`" not in TEXT]
    assert missing == []


def test_the_package_exports_what_it_names():
    assert all(hasattr(mergekit.recipe, name) for name in mergekit.recipe.__all__)
