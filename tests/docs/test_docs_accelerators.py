"""The guide on accelerators: its command runs, and it names the options and the tests that there are."""

import json
import re

from pages import ROOT, carry_out, text_of

from mergekit.cli.merge import merge

PAGE = text_of("guides/accelerators.md")


def test_its_commands_run(here):
    assert len(carry_out("guides/accelerators.md", here)) == 1
    report = json.loads((here / "merged" / "merge_report.json").read_text(encoding="utf-8"))
    assert report["device"]["name"] == "torch cpu"


def test_its_options_are_those_of_the_command():
    known = {name for param in merge.params for name in param.opts}
    named = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert {"--device", "--cuda", "--multi-gpu", "--gpu-rich", "--read-to-gpu", "--low-cpu-memory"} <= named <= known


def test_it_lists_every_test_that_needs_an_accelerator():
    source = (ROOT / "tests" / "engine" / "test_engine_accelerators.py").read_text(encoding="utf-8")
    assert "pytestmark = pytest.mark.needs_accelerator" in source
    assert set(re.findall(r"^\| `(test_\w+)`", PAGE, re.M)) == set(re.findall(r"^def (test_\w+)", source, re.M))
