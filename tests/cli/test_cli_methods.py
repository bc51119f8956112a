"""``mergekit methods``: the list, one method, and names that no method has."""

import importlib
import json
import sys

import pytest
from click.testing import CliRunner

from mergekit.cli.main import commands
from mergekit.cli.methods import default_value, example_recipe, specification
from mergekit.methods import METHODS, Parameter

PACKAGE = '''
from mergekit.methods import PerModel, merge_method


@merge_method(title="Halves", base="ignored", most=2)
def halves(models, *, weight: PerModel = 0.5, twice: bool = False):
    """Add up halves.

    ``y = Σ_i w_i · x_i``.

    Parameters:
        weight: of each model, ``w_i``.

    Shapes: any. Passes: one. Deterministic.
    """
    return sum(factor * model for factor, model in zip(weight, models))
'''
ENTRIES = "[mergekit.methods]\ncompany-halves = halves_of_a_company:halves\nbroken = no_such_module_here:f\n"


def run(*words):
    return CliRunner().invoke(commands, ["methods", *words])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a method, and with an entry point that leads nowhere."""
    (tmp_path / "halves_of_a_company.py").write_text(PACKAGE, encoding="utf-8")
    info = tmp_path / "halves_of_a_company-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halves-of-a-company\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("halves_of_a_company", None)


def test_every_method_is_in_the_list():
    done = run()
    assert (done.exit_code, done.stderr) == (0, "")
    head, *entries, last = done.stdout.rstrip("\n").split("\n\n")
    assert head.split() == ["method", "base", "models", "passes"]
    assert last == "`mergekit methods NAME` explains one of them."
    assert [entry.split()[0] for entry in entries] == list(METHODS)
    ties = entries[list(METHODS).index("ties")].splitlines()
    assert ties[0].split(maxsplit=1)[1].split("  ") == ["required", "1 or more", "1 to 3"]
    assert ties[1].startswith("  TIES: Trim each task vector")
    linear = entries[list(METHODS).index("linear")].splitlines()
    assert linear[0].split() == ["linear", "-", "1", "or", "more", "1"]
    assert head.index("base") == entries[0].index("-")


@pytest.mark.parametrize("name", [None, *METHODS])
def test_what_is_printed_fits_80_columns(name):
    done = run(*([name] if name else []))
    assert done.exit_code == 0
    assert [line for line in done.stdout.splitlines() if len(line) > 80 or line != line.rstrip()] == []
    assert not {"``", "\N{NO-BREAK SPACE}"} & set(done.stdout)
    assert "``" not in done.stdout


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_explained(name):
    method = METHODS[name]
    text = run(name).stdout
    assert text.startswith(f"{name}: {method.title}\n")
    labels = {line.split("  ")[0] for line in text.splitlines() if line and not line.startswith(" ")}
    assert {"models", "shapes", "passes", "memory", "randomness", "example"} <= labels
    assert ("parameters" in labels) == bool(method.parameters())
    assert method.reference in " ".join(text.split())
    for each in method.parameters():
        assert f"\n  {each.name:<18}{specification(each)}\n" in text
    assert f"\n  merge_method: {name}\n" in text


def test_formulas_stay_on_one_line():
    assert "\n  y = b + λ · Σ_i w_i · (x_i − b), the sum divided by" in run("task_arithmetic").stdout


def test_the_list_as_json():
    found = json.loads(run("--json").stdout)
    assert found["ok"] is True
    assert [each["name"] for each in found["methods"]] == list(METHODS)


def test_a_method_as_json():
    found = json.loads(run("ties", "--json").stdout)
    assert found["ok"] is True
    ties = found["method"]
    assert (ties["name"], ties["title"], ties["base"]) == ("ties", "TIES", "required")
    assert ties["models"] == {"least": 1, "most": None}
    density = next(each for each in ties["parameters"] if each["name"] == "density")
    assert density.pop("meaning").startswith("share of entries kept, 0 to 1; max(1, trunc(")
    assert density == {
        "name": "density",
        "kind": "float",
        "per_model": True,
        "required": False,
        "default": 1.0,
        "low": 0,
        "high": 1,
    }
    assert any("y = b + λ · Σ_agree D_i" in paragraph for paragraph in ties["formula"])
    assert ties["determinism"].startswith("Deterministic")
    assert "the peer" in ties["differences"]
    assert ties["link"] == "https://arxiv.org/abs/2306.01708"
    assert ties["example"] == example_recipe("ties") != ""


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Teis", "`ties`"),
        ("task-arithmetics", "`task_arithmetic`"),
        ("SLERP", "`slerp`"),
        ("xyzzy", "`mergekit methods`, which lists all"),
    ],
)
def test_unknown_names_are_usage_errors_with_the_nearest(name, hint):
    done = run(name)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"unknown method `{name}`\n  try {hint}" in done.stderr


@pytest.mark.parametrize("name", ["./own.py:halves", "own.py"])
def test_methods_in_files_are_not_explained(name):
    done = run(name)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"`{name}`: a Python file is not run to explain it" in done.stderr
    assert "try its docstring, or a recipe with `merge_method: ./file.py:Name`" in done.stderr


def test_an_unknown_name_as_json():
    done = run("Teis", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, done.stderr, found["ok"], found["exit_code"]) == (2, "", False, 2)
    assert "unknown method `Teis`\n  try `ties`" in found["error"]["message"]


def test_installed_methods_come_last_and_broken_ones_are_told(package):
    done = run()
    assert done.exit_code == 0
    entry = done.stdout.rstrip("\n").split("\n\n")[-2].splitlines()
    assert entry[0].split() == ["company-halves", "-", "1", "to", "2", "1"]
    assert entry[1] == "  Halves: Add up halves."
    assert done.stderr.startswith("warning: the installed method `broken`")


def test_an_installed_method_is_explained_under_its_name_in_recipes(package):
    text = run("company-halves").stdout
    assert text.startswith("company-halves: Halves\n\n  Add up halves.\n\n  y = Σ_i w_i · x_i.\n")
    assert "\n  weight            number, one per model, default 0.5\n" in text
    assert "\n  twice             true or false, default false\n" in text
    assert "example" not in text


def test_a_broken_installed_method_has_an_error_of_its_own(package):
    done = run("broken")
    assert done.exit_code == 10
    assert done.stderr.startswith("error: the installed method `broken`")


def test_help_is_complete():
    text = run("--help").stdout
    assert all(part in text for part in ("[NAME]", "--json", "Exit codes:", "the command line is wrong"))
    assert "methods" in CliRunner().invoke(commands, ["--help"]).stdout


def test_help_and_the_list_import_no_kernels(python):
    run = "import sys; from mergekit.cli.main import main; sys.argv[1:] = {}; import atexit; atexit.register({})"
    told = "lambda: print(*sorted({'numpy', 'numba', 'torch', 'rich'} & set(sys.modules)), file=sys.stderr)"
    for words, loaded in ((["methods", "--help"], ""), (["methods"], "numpy")):
        code, _, err = python("-c", f"{run.format(words, told)}; main()")
        assert (code, err.strip()) == (0, loaded)


@pytest.mark.parametrize(
    ("kind", "default", "shown"),
    [
        ("bool", True, "true"),
        ("float", 1e-5, "1e-05"),
        ("float", 1.0, "1"),
        ("int", 10, "10"),
        ("str", "l1", "l1"),
        ("str", "", "none"),
    ],
)
def test_defaults_are_shown_as_recipes_spell_them(kind, default, shown):
    declared = Parameter("p", "p", kind, False, default, False, None, None, "")
    assert default_value(declared) == shown
    assert specification(declared).endswith(f"default {shown}")


def test_required_parameters_say_so():
    assert specification(Parameter("t", "t", "float", False, None, True, 0, None, "")) == "number, at least 0, required"
