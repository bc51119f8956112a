"""The guide on models that differ: its commands run, and say what it shows."""

import json
import shutil

from test_docs import FENCE, ROOT, options_of, run

PAGE = (ROOT / "docs" / "guides" / "tolerance.md").read_text(encoding="utf-8")


def test_its_commands_run_and_say_what_it_shows(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    said, commands = "", 0
    for fence in FENCE.finditer(PAGE):
        options = options_of(fence["options"])
        if "file" in options:
            (tmp_path / options["file"]).write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh":
            done = run(fence["text"].strip(), tmp_path)
            assert done.returncode == int(options.get("exit", "0")), done.stderr
            said, commands = done.stdout + done.stderr, commands + 1
        elif fence["kind"] == "text":
            assert fence["text"].strip() in said
    assert commands == 3
    report = json.loads((tmp_path / "merged" / "merge_report.json").read_text(encoding="utf-8"))
    assert [entry["rule"] for entry in report["rules"]] == ["on_shape_mismatch: crop", "on_missing: skip"]
