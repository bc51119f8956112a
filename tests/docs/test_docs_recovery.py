"""The table of what every method keeps says what comes out."""

import re
import sys
from pathlib import Path

import pytest

from mergekit.methods import METHODS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "compare-methods.md"
TOLERANCE = 1.0  # points: other processors add up in another order

sys.path.insert(0, str(ROOT / "examples"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    from recovery import rows

    return {
        row.name: row
        for row in rows(sorted((ROOT / "examples/recipes").glob("*.yml")), tmp_path_factory.mktemp("kept"))
    }


def told():
    """Recovery and least kept by recipe, in percent, as the page has them."""
    found = re.findall(r"^\| `(\w+)` \| [\w, ]+ \| (-?[\d.]+)% \| (-?[\d.]+)% \(\w+\) \|", PAGE.read_text(), re.M)
    return {name: (float(recovery), float(least)) for name, recovery, least in found}


def test_the_page_has_every_method():
    assert set(told()) >= set(METHODS)


def test_the_page_says_what_comes_out(rows):
    assert set(told()) == set(rows)
    for name, (recovery, least) in told().items():
        assert 100 * rows[name].recovery == pytest.approx(recovery, abs=TOLERANCE), name
        assert 100 * min(rows[name].kept) == pytest.approx(least, abs=TOLERANCE), name
