"""What is printed where: results, warnings, notes, errors, JSON."""

import json

import pytest
from click.testing import CliRunner

import mergekit.kernels.compiled
import mergekit.merging
from mergekit.cli.main import commands

LEFTOVER = "parameters: {density: 0.5}\n"


def failed(result):
    """The one JSON object that a failed command printed, and nothing else."""
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert (answer["ok"], answer["exit_code"]) == (False, result.exit_code)
    return answer["error"]


def test_a_merge_ends_with_its_summary(bench):
    result = bench.run()
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["tensors", "21", "with", "5,456", "parameters"]
    assert lines[-1].split() == ["output", str(bench.out)]
    assert 3 <= len(lines) <= 8


def test_warnings_come_once_and_quiet_keeps_them(bench):
    bench.write(extra=LEFTOVER)
    aloud = bench.run("--async-write")
    quiet = bench.run("--async-write", "--overwrite", "--quiet")
    warning = aloud.stderr.partition("\n")[2]
    assert aloud.stderr.startswith("note: `--async-write`")
    assert warning.count("warning: ") == 1
    assert "`density`" in warning
    assert f"({bench.recipe}:5)" in warning
    assert (quiet.stdout, quiet.stderr) == ("", warning)


def test_strict_makes_warnings_errors(bench):
    bench.write(extra=LEFTOVER)
    result = bench.run("--strict")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: ")
    assert "`density`" in result.stderr
    assert not bench.out.exists()


def test_every_mistake_of_a_recipe_is_reported(bench):
    bench.recipe.write_text("merge_method: liner\nmodles: []\n")
    result = bench.run()
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("error: ")
    assert "liner" in result.stderr
    assert "modles" in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_models_are_mistakes_in_the_recipe(bench):
    bench.write("a", "nowhere")
    result = bench.run()
    assert result.exit_code == 3
    assert f"models[1].model ({bench.recipe}:4)" in result.stderr


@pytest.mark.parametrize("name", ["none.yml", "."])
def test_a_recipe_that_is_no_file_is_a_usage_error(bench, name):
    result = CliRunner().invoke(commands, ["yaml", str(bench.folder / name), str(bench.out)])
    assert result.exit_code == 2
    assert "Invalid value for 'CONFIG_FILE'" in result.stderr


def test_a_recipe_in_another_encoding(bench):
    bench.recipe.write_bytes("merge_method: linear\n# für alle\n".encode("latin-1"))
    result = bench.run()
    assert result.exit_code == 3
    assert result.stderr == f"error: byte 0xfc is not UTF-8\n  at {bench.recipe}:2\n  expected a recipe in UTF-8\n"


def test_json_of_a_merge(bench):
    bench.write(extra=LEFTOVER)
    result = bench.run("--json", "--async-write", "-v")
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    whole = json.loads((bench.out / "merge_report.json").read_text())
    assert (answer["ok"], answer["out"]) == (True, str(bench.out))
    assert answer["report"] == {key: whole[key] for key in whole if key not in ("tensors", "settings")}
    assert len(answer["report"]["warnings"]) == 1


def test_json_of_mistakes_in_a_recipe(bench):
    bench.recipe.write_text("merge_method: linear\nmodles: []\n")
    error = failed(bench.run("--json"))
    assert error["type"] == "RecipeError"
    assert error["message"]
    places = {(problem["file"], problem["line"]) for problem in error["problems"]}
    assert (str(bench.recipe), 2) in places
    assert error["problems"][0].keys() == {"what", "place", "file", "line", "expected", "hint"}


def test_json_of_other_errors(bench):
    bench.out.mkdir()
    (bench.out / "precious").touch()
    error = failed(bench.run("--json"))
    assert error["type"] == "OutputError"
    assert [(problem["place"], problem["line"]) for problem in error["problems"]] == [(str(bench.out), None)]


def test_json_of_a_wrong_command_line(bench):
    error = failed(bench.run("--json", "--out-shard-size", "5X"))
    assert error["type"] == "UsageError"
    assert "--out-shard-size" in error["message"]


def bug(*_, **__):
    """What goes wrong where nobody expected it."""
    raise ZeroDivisionError("what now?\nsecond line")


def test_bugs_are_named_in_one_line(bench, monkeypatch):
    monkeypatch.setattr(mergekit.merging, "check_merge", bug)
    result = bench.run()
    assert result.exit_code == 1
    assert result.stderr == "error: ZeroDivisionError: what now? (this is a bug in mergekit; `-v` shows where)\n"


def test_verbose_bugs_show_where(bench, monkeypatch):
    monkeypatch.setattr(mergekit.merging, "check_merge", bug)
    result = bench.run("-v")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "in bug" in result.stderr


def test_bugs_as_json(bench, monkeypatch):
    monkeypatch.setattr(mergekit.merging, "check_merge", bug)
    error = failed(bench.run("--json"))
    assert (error["type"], error["problems"]) == ("ZeroDivisionError", [])


def test_the_first_merge_says_that_it_compiles(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(mergekit.kernels.compiled, "cache_folder", lambda: tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    assert bench.run().stderr == "note: compiling kernels for this machine, once\n"
    assert bench.run("--quiet", "--overwrite").stderr == ""
