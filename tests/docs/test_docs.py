"""The tutorials' recipes and commands are run as they stand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<kind>\w+) ?(?P<options>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


def options_of(text: str) -> dict[str, str]:
    return dict(option.split("=", 1) for option in text.split())


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *rest = command.split()
    arguments = {"mergekit-yaml": ["yaml"], "mergekit": []}[program] + rest
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    line = [sys.executable, "-m", "mergekit.cli.main", *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_tutorial_runs(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    said = ""
    commands = 0
    for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
        options = options_of(fence["options"])
        if "file" in options:
            (tmp_path / options["file"]).write_text(fence["text"], encoding="utf-8")
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


def test_the_reference_names_every_method_with_its_parameters() -> None:
    from mergekit.methods import METHODS

    page = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, method in METHODS.items():
        for parameter in method.parameters():
            default = "required" if parameter.required else f"{parameter.default:g}".lower()
            default = str(parameter.default).lower() if isinstance(parameter.default, bool) else default
            mark = " •" if parameter.per_model else ""
            comma = "," if parameter.required else ""
            assert f"`{parameter.name}`{mark}{comma} {default}" in rows[name], (name, parameter.name)
