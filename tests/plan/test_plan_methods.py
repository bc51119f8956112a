"""Which class `merge_method` means: built in, installed, or in a Python file."""

import sys

import pytest

from mergekit.errors import RecipeError
from mergekit.methods import METHODS, MethodError
from mergekit.plan import PlanOptions, plan_merge
from mergekit.plan.methods import file_method, installed_method, installed_methods, method_file

FUNCTION = '''
from mergekit.methods import merge_method

@merge_method(title="Halves")
def halves(base, models, *, t: float = 0.5):
    """Go half of the way."""
    return (1 - t) * base + t * models.mean(0)
'''
CLASS = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from mergekit.methods import Method, Needs, parameter

@dataclass(frozen=True, kw_only=True)
class Halves(Method):
    """Go half of the way."""

    name: ClassVar[str] = "halves"
    title: ClassVar[str] = "Halves"
    reference: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs(base="required")

    t: float = parameter(0.5, doc="how far")

    def merge(self, block, stats):
        return (1 - self.t) * block.base + self.t * block.models[0]
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, beside a folder with the recipe."""
    (tmp_path / "work").mkdir()
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def plan(llamas, folder):
    """Plan `recipes/merge.yml` with a method, on the third line."""

    def run(method, allow_code=False, extra=""):
        text = f"base_model: {llamas / 'base'}\nmodels: [{{model: {llamas / 'a'}}}]\nmerge_method: {method}\n{extra}"
        recipe = folder / "recipes" / "merge.yml"
        recipe.write_text(text)
        return plan_merge(text, file=str(recipe), options=PlanOptions(allow_code=allow_code, workers=1))

    return run


@pytest.fixture
def problem(plan):
    """The one problem of a recipe with a method."""

    def run(method, allow_code=True, extra=""):
        with pytest.raises(RecipeError) as caught:
            plan(method, allow_code, extra)
        (found,) = caught.value.problems
        return found

    return run


def values(plan):
    """Parameters of the first tensor, by name."""
    return {each.name: getattr(plan.tasks[0].method, each.field) for each in plan.method.parameters()}


@pytest.mark.parametrize(("source", "name"), [(FUNCTION, "halves"), (CLASS, "Halves")])
def test_a_file_beside_the_recipe(plan, folder, source, name):
    (folder / "recipes" / "own.py").write_text(source)
    found = plan(f"./own.py:{name}", True, "parameters: {t: 0.25}")
    assert found.method.name == "halves"
    assert values(found) == {"t": 0.25}
    assert found.recipe.method == f"./own.py:{name}"


def test_beside_the_recipe_comes_before_the_working_folder(plan, folder):
    (folder / "work" / "own.py").write_text(FUNCTION.replace("Halves", "Work"))
    assert plan("./own.py:halves", True).method.title == "Work"
    (folder / "recipes" / "own.py").write_text(FUNCTION.replace("Halves", "Recipe"))
    assert plan("own.py:halves", True).method.title == "Recipe"
    assert plan(f"{folder}/work/own.py:halves", True).method.title == "Work"


def test_a_file_is_not_run_unasked(problem, folder):
    file = folder / "recipes" / "own.py"
    file.write_text("raise AssertionError('it ran')")
    found = problem("./own.py:halves", allow_code=False)
    assert "means trusting it" in found.what
    assert (found.place.path, found.place.line) == ("merge_method", 3)
    assert found.place.file == str(folder / "recipes" / "merge.yml")
    assert found.hint == f"`--allow-code`, or `allow_code=True` in Python, if you trust {file}"


def test_other_mistakes_are_reported_with_it(plan, folder, llamas):
    (folder / "recipes" / "own.py").write_text(FUNCTION)
    with pytest.raises(RecipeError) as caught:
        plan("./own.py:halves", False, "dtype: int64")
    assert len(caught.value.problems) == 2


def test_a_file_that_is_not_there(problem, folder):
    found = problem("./own.py:halves")
    assert found.what == (f"there is no file `./own.py`: looked for `{folder / 'recipes' / 'own.py'}` and `own.py`")
    assert found.place.line == 3


@pytest.mark.parametrize(
    ("source", "what", "line"),
    [
        ("x = 1\ndef broken(:\n", "SyntaxError: invalid syntax", 2),
        ("x = 1\n\ny = 1 / 0\n", "ZeroDivisionError: division by zero", 3),
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'", 1),
        ("def f():\n    raise ValueError('no')\n\nf()", "ValueError: no", 2),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3", 2),
    ],
)
def test_a_file_that_fails(problem, folder, source, what, line):
    file = folder / "recipes" / "own.py"
    file.write_text(source)
    before = set(sys.modules)
    found = problem("./own.py:halves")
    assert found.what == f"{file} fails: {what}"
    assert (found.place.file, found.place.line) == (str(file), line)
    assert set(sys.modules) == before


def test_a_function_of_the_wrong_form_is_found_in_its_line(problem, folder):
    file = folder / "recipes" / "own.py"
    file.write_text(FUNCTION.replace("t: float", "t: complex"))
    found = problem("./own.py:halves")
    assert found.what.startswith("`halves` cannot be a merge method: the annotation of `t`")
    assert found.place.file == str(file)
    assert file.read_text().splitlines()[found.place.line - 1].startswith("@merge_method")


@pytest.mark.parametrize("content", [b"x = '\xff'", b"x = 1\0"])
def test_a_file_that_is_no_text(problem, folder, content):
    (folder / "recipes" / "own.py").write_bytes(content)
    assert f"{folder / 'recipes' / 'own.py'} fails: " in problem("./own.py:halves").what


def test_a_misspelled_name(problem, folder):
    (folder / "recipes" / "own.py").write_text(FUNCTION)
    found = problem("./own.py:havles")
    assert found.what == f"there is no `havles` in {folder / 'recipes' / 'own.py'}"
    assert (found.expected, found.hint, found.place.line) == ("one of `halves`", "`./own.py:halves`", 3)


def test_a_file_without_methods(problem, folder):
    (folder / "recipes" / "own.py").write_text("x = 1")
    assert problem("./own.py:halves").expected == "a method, and there is none"


def test_a_name_that_is_no_method(problem, folder):
    (folder / "recipes" / "own.py").write_text(FUNCTION.replace('@merge_method(title="Halves")', ""))
    found = problem("./own.py:halves")
    assert found.what.endswith("is neither a function with `@merge_method` nor a subclass of `mergekit.methods.Method`")


def test_parameters_of_own_methods_are_checked(problem, folder):
    (folder / "recipes" / "own.py").write_text(FUNCTION.replace("t: float", "tilt: float").replace("t)", "tilt)"))
    found = problem("./own.py:halves", True, "parameters: {tlit: 0.5}")
    assert (found.what, found.hint, found.place.line) == ("unknown parameter `tlit`", "`tilt`", 4)


def test_a_file_that_stays_the_same_runs_once(folder):
    file = folder / "work" / "own.py"
    file.write_text(FUNCTION)
    first = file_method("own.py:halves", [folder / "work"], True)
    assert file_method("./own.py:halves", [folder / "work"], True) is first
    file.write_text(FUNCTION.replace("Halves", "Edited"))
    second = file_method("own.py:halves", [folder / "work"], True)
    assert (first.title, second.title) == ("Halves", "Edited")
    assert method_file(first)["sha256"] != method_file(second)["sha256"]
    assert method_file(METHODS["ties"]) is None
    assert not (folder / "work" / "__pycache__").exists()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with one module and entry points, as pip would."""
    site = tmp_path / "site"
    site.mkdir()

    def add(package, source, **methods):
        (site / f"{package}.py").write_text(source)
        metadata = site / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in methods.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[mergekit.methods]", *lines]))
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, package, raising=False)

    yield add
    for name in [name for name, module in sys.modules.items() if str(site) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_an_installed_method_needs_no_permission(plan, install):
    install("halving", FUNCTION, halves="halving:halves", other="halving:halves")
    found = plan("halves", False, "parameters: {t: 0.25}")
    assert (found.method.name, values(found)) == ("halves", {"t": 0.25})
    assert method_file(found.method) is None
    assert installed_methods() == ("halves", "other")


def test_an_installed_method_does_not_take_the_name_of_another(plan, install):
    install("taking", FUNCTION, linear="taking:halves")
    assert plan("linear").method is METHODS["linear"]
    assert installed_methods() == ()
    assert "taking" not in sys.modules


def test_names_of_installed_methods_are_suggested(problem, install):
    install("halving", FUNCTION, halves="halving:halves")
    found = problem("havles")
    assert (found.hint, found.place.line) == ("`halves`", 3)
    assert "`halves`" in found.expected


def test_an_unknown_name_is_one_problem(problem):
    found = problem("quux")
    assert (found.what, found.hint) == ("`quux` is not a merge method", None)


@pytest.mark.parametrize(
    ("source", "value", "what"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'", "halves"),
        (FUNCTION, "AttributeError: module 'breaking' has no attribute 'missing'", "missing"),
    ],
)
def test_a_broken_package_is_one_problem(problem, install, source, value, what):
    install("breaking", source, halves=f"breaking:{what}")
    found = problem("halves")
    assert found.what == f"the installed method `halves` (breaking:{what} of breaking) cannot be loaded: {value}"
    assert (found.place.path, found.place.line, found.hint) == ("merge_method", 3, "another version of that package")


def test_an_entry_point_that_is_no_method(install):
    install("plain", FUNCTION, halves="plain:merge_method")
    with pytest.raises(MethodError, match=r"the installed method `halves` \(plain:merge_method of plain\) is neither"):
        installed_method("halves")


def test_two_packages_with_one_name(install):
    install("ours", FUNCTION, halves="ours:halves")
    install("theirs", FUNCTION, halves="theirs:halves")
    with pytest.raises(MethodError, match="ours:halves of ours and theirs:halves of theirs") as caught:
        installed_method("halves")
    assert caught.value.problem.hint == "uninstalling all but one of them"


def test_nothing_is_looked_up_for_built_in_methods(plan, monkeypatch):
    monkeypatch.delitem(sys.modules, "importlib.metadata", raising=False)
    plan("linear")
    assert "importlib.metadata" not in sys.modules
