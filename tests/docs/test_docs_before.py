"""The guide on what is known before a merge: its commands run, and say what it shows."""

import shutil

from test_docs import FENCE, ROOT, options_of, run

PAGE = (ROOT / "docs" / "guides" / "before-a-merge.md").read_text(encoding="utf-8")


def test_its_commands_run_and_say_what_it_shows(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    said, commands = "", []
    for fence in FENCE.finditer(PAGE):
        options = options_of(fence["options"])
        if "file" in options:
            (tmp_path / options["file"]).write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh":
            done = run(fence["text"].strip(), tmp_path)
            assert done.returncode == int(options.get("exit", "0")), done.stderr
            said = done.stdout + done.stderr
            commands.append(fence["text"].split()[1])
        else:
            assert fence["text"].strip() in said
    assert commands == ["check", "check", "plan", "explain"]
    assert (tmp_path / "gradient.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not (tmp_path / "merged").exists()
