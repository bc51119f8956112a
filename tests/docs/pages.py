"""Pages of the documentation, carried out as a reader would.

What stands in fences means:

    yaml file=merge.yml    a file that the reader writes; also python, json, toml
    sh                     commands, one in each line, that end well
    sh exit=7              the same with another exit code
    sh skip                commands that cannot run here
    text                   what the command before has said, among other things
    text lines             the same, with something left out between lines or around them
    text of=missing        what nothing here has said; a test of its own looks at it
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SITE = "site-packages"
_FENCE = re.compile(r"^```(?P<kind>\w+)(?P<words>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


def text_of(page):
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def fences(page):
    """Of each fence the kind, the words behind it, and the text."""
    return [(fence["kind"], fence["words"].split(), fence["text"]) for fence in _FENCE.finditer(text_of(page))]


def carry_out(page, folder, after=lambda command: None):
    """Write the files of a page, run its commands and compare what they say; returns the commands.

    `after` is called after every command.
    """
    said, commands = "", []
    for kind, words, text in fences(page):
        options = dict(word.split("=", 1) for word in words if "=" in word)
        if "file" in options:
            file = folder / options["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif kind == "sh" and "skip" not in words:
            for command in text.replace("\\\n", " ").splitlines():
                done = run(command, folder)
                said = done.stdout + done.stderr
                assert done.returncode == int(options.get("exit", "0")), f"{command}\n{said}"
                commands.append(command)
                after(command)
        elif kind == "text" and "of" not in options:
            _compare(text.strip(), said, "lines" in words)
    return commands


def _compare(shown, said, abridged):
    for line in shown.splitlines() if abridged else [shown]:
        assert line.strip() in said, f"the page shows\n{line}\nand the command says\n{said}"


def run(command, folder):
    """Run a command of a reader who has installed mergekit."""
    program, *rest = shlex.split(command)
    if program == "pip":
        return install(command, folder)
    main = ["-m", "mergekit.cli.main"]
    name = program.removeprefix("mergekit-")
    arguments = {"mergekit": main, "python": []}.get(program, [*main, name]) + rest
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{folder / SITE}", "NO_COLOR": "1"}
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)


def install(command, folder):
    """Do what ``pip install ./FOLDER`` does to a package of one module, without a network."""
    source, site = folder / command.removeprefix("pip install "), folder / SITE
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = site / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(source / f"{project['name']}.py", site)
    about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(about, encoding="utf-8")
    points = [
        f"[{group}]\n" + "\n".join(map(" = ".join, own.items())) for group, own in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(points), encoding="utf-8")
    return subprocess.CompletedProcess(command, 0, "", "")
