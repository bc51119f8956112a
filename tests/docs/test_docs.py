"""The tutorials' recipes and commands are run as they stand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SITE = "site-packages"
FENCE = re.compile(r"^```(?P<kind>\w+) ?(?P<options>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


def options_of(text: str) -> dict[str, str]:
    return dict(option.split("=", 1) for option in text.split())


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *rest = command.split()
    if program == "pip":
        return install(command, folder)
    main = ["-m", "mergekit.cli.main"]
    arguments = {"mergekit-yaml": [*main, "yaml"], "mergekit": main, "python": []}[program] + rest
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{folder / SITE}", "NO_COLOR": "1"}
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)


def install(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
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


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_tutorial_runs(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    said = ""
    commands = 0
    for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
        options = options_of(fence["options"])
        if "file" in options:
            file = tmp_path / options["file"]
            file.parent.mkdir(exist_ok=True)
            file.write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh":
            for command in fence["text"].splitlines():
                done = run(command, tmp_path)
                said = done.stdout + done.stderr
                assert done.returncode == int(options.get("exit", "0")), f"{command}\n{said}"
                commands += 1
        elif fence["kind"] == "text":
            assert fence["text"].strip() in said
    assert commands > 0


def test_first_merge_leaves_what_it_promises(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    assert run("mergekit-yaml examples/recipes/four_languages.yml out", tmp_path).returncode == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names >= {"model.safetensors", "config.json", "README.md", "mergekit_config.yml", "merge_report.json"}
    assert (tmp_path / "out" / "mergekit_config.yml").read_text(encoding="utf-8") == (
        ROOT / "examples" / "recipes" / "four_languages.yml"
    ).read_text(encoding="utf-8")


def test_the_schema_for_editors_is_current() -> None:
    from mergekit.plan import VOCABULARY
    from mergekit.recipe import recipe_schema

    kept = json.loads((ROOT / "docs" / "reference" / "recipe.schema.json").read_text(encoding="utf-8"))
    assert kept == recipe_schema(VOCABULARY), "run `mergekit schema > docs/reference/recipe.schema.json`"
