"""The shape of the source: who imports whom, and how long things are."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "mergekit"
FILES = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text("utf-8")) for file in sorted(ROOT.rglob("*.py"))}

BELOW_PLAN = {"errors", "checkpoint", "layout", "adapters", "recipe", "tokenizer", "kernels", "methods"}
LAYERS = {
    "errors": set(),
    "sizes": set(),
    "checkpoint": {"errors"},
    "layout": {"errors", "checkpoint"},
    "adapters": {"errors", "checkpoint", "layout"},
    "recipe": {"errors"},
    "tokenizer": {"errors", "checkpoint", "recipe"},
    "kernels": set(),
    "methods": {"errors", "kernels"},
    "plan": BELOW_PLAN,
    "engine": {*BELOW_PLAN, "plan"},
    "report": {*BELOW_PLAN, "plan"},
    "preview": {*BELOW_PLAN, "plan", "engine", "report"},
    "merging": {*BELOW_PLAN, "plan", "engine", "report", "preview"},
    "raw": {*BELOW_PLAN, "plan", "merging"},
    "making": {*BELOW_PLAN, "plan", "report", "merging", "raw", "moe", "fronts", "surgery"},
    "origin": {*BELOW_PLAN, "plan", "report", "making"},
    "reproducing": {*BELOW_PLAN, "plan", "engine", "report", "merging", "origin"},
    "multi": {*BELOW_PLAN, "plan", "engine", "report", "merging"},
    "fronts": {*BELOW_PLAN, "plan", "merging"},
    "moe": {*BELOW_PLAN, "plan", "merging"},
    "testing": {"errors", "kernels", "methods"},
    "config": {"errors", "plan", "recipe"},
    "api": {*BELOW_PLAN, "plan", "engine", "merging", "moe", "config", "sizes"},
    "merge": {"errors", "plan", "config", "api"},
    "lora": {*BELOW_PLAN, "plan", "report", "api"},
    "surgery": {*BELOW_PLAN, "plan", "engine", "report", "merging"},
    "evolution": {*BELOW_PLAN, "plan", "engine", "report", "merging", "config", "api"},
    "cli": {
        *BELOW_PLAN,
        "plan",
        "engine",
        "report",
        "preview",
        "merging",
        "raw",
        "lora",
        "surgery",
        "evolution",
        "multi",
        "fronts",
        "moe",
        "api",
        "sizes",
        "making",
        "origin",
        "reproducing",
    },
}
"""What each package may import of ours, beside itself and the version."""

HEAVY = {
    "tokenizers",
    "gguf",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "numba",
    "ray",
    "rich",
    "torch",
    "transformers",
}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def layer_of(file):
    return file.split("/")[0].removesuffix(".py")


def imports(nodes):
    """Full names of the modules that import statements among the nodes name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            if node.module == "mergekit":
                yield from (f"mergekit.{alias.name}" for alias in node.names)


def ours(file):
    """The packages of ours that a file imports, anywhere in it."""
    names = (name.split(".") for name in imports(ast.walk(FILES[file])))
    return {parts[1] for parts in names if parts[0] == "mergekit" and parts[1:]} - {"__version__"}


def at_import_time(node):
    """The statements of a module that run when it is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import_time(child)


@pytest.mark.parametrize("file", [file for file in FILES if file not in ("__init__.py", "__main__.py")])
def test_imports_go_up_the_table_only(file):
    layer = layer_of(file)
    assert layer in LAYERS, "a new package needs a line in LAYERS"
    assert ours(file) <= LAYERS[layer] | {layer}


def test_the_root_of_the_package_imports_nothing_of_ours():
    """What it names is loaded when asked for; editors see it under TYPE_CHECKING."""
    loaded = [name for name in imports(at_import_time(FILES["__init__.py"])) if name.startswith("mergekit")]
    assert loaded == []
    assert ours("__main__.py") <= {"cli"}


@pytest.mark.parametrize("file", FILES)
def test_heavy_libraries_are_imported_where_they_are_used(file):
    heavy = {name.split(".")[0] for name in imports(at_import_time(FILES[file]))} & HEAVY
    assert heavy <= ({"numba"} if layer_of(file) == "kernels" else set())


def test_what_answers_fast_never_loads_a_heavy_library():
    """Kernels hold numba at module level, so nobody may import those modules when being imported."""
    compiled = {
        f"mergekit.{file.removesuffix('.py').replace('/', '.')}"
        for file in FILES
        if layer_of(file) == "kernels" and any(name.startswith("numba") for name in imports(ast.walk(FILES[file])))
    }
    assert compiled
    for file in FILES:
        if layer_of(file) != "kernels":
            assert not compiled & set(imports(at_import_time(FILES[file]))), file


@pytest.mark.parametrize("file", FILES)
def test_modules_stay_short_and_say_what_they_hold(file):
    assert len((ROOT / file).read_text("utf-8").splitlines()) < 400
    assert not VAGUE & set(file.removesuffix(".py").split("/"))
    assert ast.get_docstring(FILES[file])


def body_lines(function):
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("file", FILES)
def test_functions_stay_short(file):
    functions = [node for node in ast.walk(FILES[file]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {function.name: body_lines(function) for function in functions if body_lines(function) > 40}
    assert not long


def classes():
    """Every class of ours with its name; private names may occur in several modules."""
    found = {}
    for tree in FILES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def bases(node):
    return [ast.unparse(base).partition("[")[0] for base in node.bases]


def is_abstract(node):
    """Whether a class cannot be made as it is: it declares ABC or Protocol, or leaves a method abstract."""
    functions = [child for child in node.body if isinstance(child, ast.FunctionDef)]
    decorators = {ast.unparse(decorator) for function in functions for decorator in function.decorator_list}
    return bool({"ABC", "Protocol"} & set(bases(node))) or "abstractmethod" in decorators


def test_classes_are_abstract_or_final():
    """Errors form a tree that users catch by its branches; of all other classes only abstract ones have heirs."""
    known = classes()
    extended = {base for nodes in known.values() for node in nodes for base in bases(node)} & known.keys()
    assert {"Method", "Compute", "MergekitError"} <= extended
    for name in extended:
        for node in known[name]:
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            assert name.endswith("Error") or is_abstract(node), f"{name} has heirs and is not abstract"
            assert "final" not in decorators, f"{name} has heirs and is final"
