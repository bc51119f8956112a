"""Candidates that are judged by actors of Ray, one of which is lost on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mergekit.cli.main import commands
from mergekit.errors import DeviceError
from mergekit.evolution.cluster import team_of

ROOT = Path(__file__).parents[2]
SCORE = """
import os, yaml
from pathlib import Path

def score(candidate):
    if not Path("lost").exists():
        Path("lost").touch()
        os._exit(1)
    sources = yaml.safe_load(candidate.recipe)["slices"][0]["sources"][:2]
    return -sum((each["parameters"]["weight"] - 0.7) ** 2 for each in sources)
"""


OPTIONS = ("--max-fevals", "9", "--allow-code", "--plots", "none", "--no-save-final-model", "--json")


def on_cluster(folder, *arguments):
    """What a search finds in a process of its own, whose cluster ends with it; and what is said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1", "RAY_DISABLE_IMPORT_WARNING": "1"}
    line = [sys.executable, "-c", "from mergekit.cli.main import main_evolve; main_evolve()", "evolve.yml", *arguments]
    done = subprocess.run([*line, *OPTIONS], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return without_times(done.stdout)


def alone(*arguments):
    done = CliRunner().invoke(commands, ["evolve", "evolve.yml", *OPTIONS, *arguments])
    assert done.exit_code == 0, done.output
    return without_times(done.stdout)


def without_times(said):
    return [{**trial, "seconds": 0} for trial in json.loads(said)["trials"]]


@pytest.mark.parametrize(
    ("rooms", "count", "threads", "expected"),
    [
        ([(4, 0), (4, 0)], None, None, (2, 4, 0)),  # one on each machine
        ([(2, 0)], 5, None, (2, 1, 0)),  # no more than there are cores
        ([(2, 0), (6, 0)], 2, None, (2, 3, 0)),  # both on the larger one
        ([(2, 0)], None, 8, (1, 2, 0)),  # no machine has as many threads
        ([(0, 0), (4, 0)], None, None, (1, 4, 0)),  # the head of a cluster may have no cores
        ([(8, 2), (8, 0)], None, None, (2, 4, 1)),  # one on each accelerator
        ([(16, 2)], 3, None, (3, 5, 0.5)),  # two thirds of an accelerator each would leave one without
        ([(1, 4)], None, None, (1, 1, 1)),  # a core for each
    ],
)
def test_every_actor_finds_a_place(rooms, count, threads, expected):
    found = team_of(rooms, count, threads)
    assert (found.count, found.threads, found.accelerator) == expected


def test_a_cluster_without_cores_is_refused():
    with pytest.raises(DeviceError, match="has no cores"):
        team_of([(0, 0)], 2, None)


def test_a_search_on_a_cluster_finds_what_it_finds_alone_though_an_actor_is_lost(tmp_path, examples, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(examples / "models")
    (tmp_path / "score.py").write_text(SCORE, encoding="utf-8")
    genome = {"merge_method": "task_arithmetic", "base_model": "models/base", "models": ["models/de", "models/es"]}
    configuration = {"genome": genome, "objectives": [{"call": "score.py:score"}]}
    (tmp_path / "evolve.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    found = on_cluster(tmp_path, "--storage-path", "cluster", "--ray", "local", "--workers", "2")
    assert (tmp_path / "lost").exists()
    assert [trial["failure"] for trial in found] == [None] * 9
    assert alone("--storage-path", "alone") == found
