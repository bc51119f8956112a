"""The generated reference of methods is what the classes say now."""

import re
from pathlib import Path

import pytest

from mergekit.cli.reference import refreshed
from mergekit.methods import METHODS
from mergekit.methods.describe import describe

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
PAGE = (FOLDER / "methods.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}


def test_the_page_is_current():
    stale = [name for name in METHODS if name not in SECTIONS]
    assert not stale, f"run: python -m mergekit.cli.reference docs/reference/*.md (for {', '.join(stale)})"
    assert refreshed(PAGE) == PAGE, "run: python -m mergekit.cli.reference docs/reference/*.md"


def test_its_first_lines_say_how_it_is_made():
    comment = PAGE.partition("-->")[0]
    assert comment.startswith("<!--")
    assert "python -m mergekit.cli.reference docs/reference/*.md" in comment


def test_every_method_stands_in_the_table_and_has_a_section():
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \|", PAGE, re.M)
    assert rows == [(name, name) for name in METHODS]
    assert list(SECTIONS) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_section_has_formula_parameters_and_recipe(name):
    section, found = SECTIONS[name], describe(METHODS[name])
    assert all(paragraph.replace("``", "`") in section for paragraph in found.formula)
    rows = {row[0]: row for row in re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (\w+) \| (\S+) \|", section, re.M)}
    assert list(rows) == [each.name for each in found.parameters]
    for each in found.parameters:
        _, kind, bounds, scope, default = rows[each.name]
        assert (kind, bounds.strip()) == (each.kind, each.bounds)
        assert scope == ("model" if each.per_model else "tensor")
        assert (default == "required") == each.required
    assert f"\nmerge_method: {name}\n" in section.partition("```yaml\n")[2].partition("```")[0]


def test_tables_have_as_many_cells_in_every_row():
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, table


def test_what_is_outdated_is_replaced():
    assert "SLERP" in PAGE
    assert refreshed(PAGE.replace("SLERP", "SLURP")) == PAGE


def test_the_recipe_language_leads_to_it():
    assert "(methods.md)" in (FOLDER / "recipe.md").read_text(encoding="utf-8")
