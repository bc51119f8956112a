"""The guide on accelerators: its command runs, and it names the options and the tests that there are."""

import json
import re
import shutil

from test_docs import FENCE, ROOT, options_of, run

from mergekit.cli.merge import merge

PAGE = (ROOT / "docs" / "guides" / "accelerators.md").read_text(encoding="utf-8")


def test_its_commands_run(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    commands = [fence for fence in FENCE.finditer(PAGE) if options_of(fence["options"]).get("runs") != "no"]
    assert len(commands) == 1
    done = run(commands[0]["text"].strip(), tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "merged" / "merge_report.json").read_text(encoding="utf-8"))
    assert report["device"]["name"] == "torch cpu"


def test_its_options_are_those_of_the_command():
    known = {name for param in merge.params for name in param.opts}
    named = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert {"--device", "--cuda", "--multi-gpu", "--gpu-rich", "--read-to-gpu", "--low-cpu-memory"} <= named <= known


def test_it_lists_every_test_that_needs_an_accelerator():
    source = (ROOT / "tests" / "engine" / "test_engine_accelerators.py").read_text(encoding="utf-8")
    assert "pytestmark = pytest.mark.needs_accelerator" in source
    assert set(re.findall(r"^\| `(test_\w+)`", PAGE, re.M)) == set(re.findall(r"^def (test_\w+)", source, re.M))
