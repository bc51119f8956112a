"""The guide on clusters: its commands run, and say what it shows; its table is what they say."""

import json
import re
import shutil

import pytest
import yaml
from pages import ROOT, carry_out, fences, run, text_of

PAGE = text_of("guides/cluster.md")
ROW = re.compile(r"^\|[^|]*\| \d+ \|.*$", re.M)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Ray keeps to itself."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


def test_its_commands_run_and_say_what_it_shows(here):
    shutil.copytree(ROOT / "benchmarks", here / "benchmarks")
    commands = [command.split()[1] for command in carry_out("guides/cluster.md", here)]
    assert commands == ["examples/recipes/ties.yml", "plan", "benchmarks/make_hollow.py", "plan"]
    assert run("mergekit-yaml examples/recipes/ties.yml plain", here).returncode == 0
    written, plain = ((here / name / "model.safetensors").read_bytes() for name in ("merged", "plain"))
    assert written == plain
    for nodes, batches, read, written in rows("70 B"):
        assert planned(here, nodes) == (batches, read, written)


def rows(name):
    """Of a checkpoint in the table: nodes, batches, and what the busiest one reads and writes, in GB."""
    found, current = [], ""
    for row in ROW.findall(PAGE):
        label, nodes, batches, read, written, *_ = (cell.strip().removesuffix(" GB") for cell in row.split("|")[1:])
        current = label or current
        if current.startswith(name):
            found.append((int(nodes), batches, read, written))
    assert [row[0] for row in found] == [1, 4, 16]
    return found


def planned(folder, nodes):
    done = run(f"mergekit plan cluster-70b.yml --disk-rate 2GB --json --nodes {nodes}", folder)
    found = json.loads(done.stdout)["plan"]["nodes"]
    assert found["collected"]["link"] == 141_107_412_992
    for way in (found["shared"], found["collected"]):
        assert 0 < way["seconds"][0] < way["seconds"][1]
    return f"{found['batches']:,}", f"{found['read'] / 1e9:,.1f}", f"{found['written'] / 1e9:,.1f}"


def test_the_large_one_is_as_large_as_it_says():
    """Bytes of all nodes are those of three models and of one."""
    weights = 2 * 671_026_419_200
    for nodes, _, read, written in rows("671 B"):
        for said, models in ((read, 3), (written, 1)):
            assert float(said.replace(",", "")) * nodes == pytest.approx(models * weights / 1e9, rel=0.002)


def test_its_recipes_are_recipes():
    recipes = [yaml.safe_load(text) for kind, _, text in fences("guides/cluster.md") if kind == "yaml"]
    assert [recipe["merge_method"] for recipe in recipes] == ["ties", "task_arithmetic"]


def test_the_error_it_shows_is_the_one_that_is_raised():
    source = (ROOT / "src" / "mergekit" / "engine" / "node.py").read_text(encoding="utf-8")
    shown = next(text for _, words, text in fences("guides/cluster.md") if words == ["of=missing"]).splitlines()
    for line in shown[2:]:
        assert line.split(maxsplit=1)[1] in source
    assert "there is no such file" in source
