"""Candidates that are judged by actors of Ray, one of which is lost on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

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


def evolve(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1", "RAY_DISABLE_IMPORT_WARNING": "1"}
    line = [sys.executable, "-c", "from mergekit.cli.main import main_evolve; main_evolve()", "evolve.yml", *arguments]
    line += ["--max-fevals", "9", "--allow-code", "--plots", "none", "--no-save-final-model", "--json"]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [{**trial, "seconds": 0} for trial in json.loads(done.stdout)["trials"]]


def test_a_search_on_a_cluster_finds_what_it_finds_alone_though_an_actor_is_lost(tmp_path, examples):
    (tmp_path / "models").symlink_to(examples / "models")
    (tmp_path / "score.py").write_text(SCORE, encoding="utf-8")
    genome = {"merge_method": "task_arithmetic", "base_model": "models/base", "models": ["models/de", "models/es"]}
    configuration = {"genome": genome, "objectives": [{"call": "score.py:score"}]}
    (tmp_path / "evolve.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    found = evolve(tmp_path, "--storage-path", "cluster", "--ray", "local", "--workers", "2")
    assert (tmp_path / "lost").exists()
    assert [trial["failure"] for trial in found] == [None] * 9
    assert evolve(tmp_path, "--storage-path", "alone") == found
