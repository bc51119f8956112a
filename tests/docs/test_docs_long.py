"""The guide on long merges: its commands run, and say what it shows; the merge it interrupts ends as any other."""

import json
import shutil

from test_docs import FENCE, ROOT, options_of, run

PAGE = (ROOT / "docs" / "guides" / "long-merges.md").read_text(encoding="utf-8")


def contents(folder):
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(found.pop("merge_report.json"))
    del report["seconds"]
    return found, report


def test_its_commands_run_and_say_what_it_shows(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    said, commands = "", 0
    for fence in FENCE.finditer(PAGE):
        options = options_of(fence["options"])
        if "file" in options:
            (tmp_path / options["file"]).write_text(fence["text"], encoding="utf-8")
            (tmp_path / "merged").rename(tmp_path / "plain")
        elif fence["kind"] == "sh":
            done = run(fence["text"].strip(), tmp_path)
            said, commands = done.stdout + done.stderr, commands + 1
            assert done.returncode == int(options.get("exit", 0)), said
            assert (tmp_path / "merged.partial").exists() == ("stop.py" in fence["text"])
        else:
            assert fence["text"].strip() in said
    assert commands == 4
    assert not (tmp_path / "small").exists()
    (merged, report), (plain, expected) = contents(tmp_path / "merged"), contents(tmp_path / "plain")
    assert merged == plain
    assert report == expected
