"""Pages lead to each other: links go somewhere, and what lists pages or commands lists all of them."""

import re

import pytest
from pages import ROOT

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page):
    """What headings of a page are called in links, as GitHub makes it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        found = page.parent / target if target else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


def linked(page):
    return {(page.parent / target).resolve() for target, _ in LINK.findall(page.read_text(encoding="utf-8"))}


def test_readme_leads_to_every_guide():
    pages = {page for folder in ("guides", "tutorials", "explain") for page in (DOCS / folder).glob("*.md")}
    assert pages - linked(ROOT / "README.md") == set()


def test_readme_says_how_many_families_were_tried():
    tried = re.search(r"(\d+) families could be built", (DOCS / "reference" / "architectures.md").read_text("utf-8"))
    assert f"[{tried[1]} families tried]" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_decision_is_listed_in_order():
    index = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{4}) \| \[(.+)\]\((.+)\) \|$", index, re.M)
    assert [name for _, _, name in rows] == sorted(page.name for page in (DOCS / "decisions").glob("0*.md"))
    for number, title, name in rows:
        head = (DOCS / "decisions" / name).read_text("utf-8").partition("\n")[0]
        assert (name[:4], head) == (number, f"# {int(number)}. {title}")


def test_the_reference_lists_every_command():
    from mergekit.cli.main import COMMANDS

    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    table = page.partition("`python -m mergekit` is")[0]
    assert [name for name in COMMANDS if f"`mergekit {name}`" not in table] == []


def test_the_table_of_flags_is_that_of_the_command():
    from mergekit.cli.merge import merge

    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    table = page.partition("## Flags")[2].partition("## Help texts")[0]
    named = {flag for row in re.findall(r"^\| (`-.*?) \|", table, re.M) for flag in re.findall(r"`(-[\w-]+)`", row)}
    taken = [{*param.opts, *param.secondary_opts} for param in merge.params if param.opts[0].startswith("-")]
    assert [sorted(flags) for flags in taken if not flags & named and "--help" not in flags] == []
    assert named - set().union(*taken) == set()


def test_the_design_names_every_package():
    page = (DOCS / "explain" / "design.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "mergekit"
    packages = [f"{path.parent.name}/" for path in source.glob("*/__init__.py")]
    modules = [path.name for path in source.glob("*.py") if not path.name.startswith("_")]
    assert [name for name in (*packages, *modules) if f"`{name}`" not in page] == []
