"""The guide on what to do after a merge: its commands run and print what it shows."""

import os
import shlex
import shutil
import subprocess
import sys

from test_docs import FENCE, ROOT, options_of, run

PAGE = (ROOT / "docs" / "guides" / "after-a-merge.md").read_text(encoding="utf-8")


def carried_out(command, folder):
    if not command.startswith("python -c"):
        return run(command, folder)
    words = [sys.executable, *shlex.split(command)[1:]]
    return subprocess.run(words, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)


def test_its_commands_run_and_say_what_it_shows(tmp_path):
    shutil.copytree(ROOT / "examples" / "models", tmp_path / "examples" / "models")
    said, commands = "", []
    for fence in FENCE.finditer(PAGE):
        options = options_of(fence["options"])
        if "file" in options:
            (tmp_path / options["file"]).write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh":
            done = carried_out(fence["text"].strip(), tmp_path)
            said = done.stdout + done.stderr
            commands.append(fence["text"].split()[1])
            assert done.returncode == int(options.get("exit", 0)), said
        else:
            assert fence["text"].strip() in said
    assert {"verify", "reproduce"} <= set(commands)
    assert not [path.name for path in tmp_path.iterdir() if "reproduced" in path.name]
