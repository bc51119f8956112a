"""The method that a recipe names: of mergekit, of an installed package, or in a Python file."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mergekit.errors import Findings
from mergekit.methods import METHODS, Method, MethodError
from mergekit.methods.declarations import flaws
from mergekit.methods.function import place_in
from mergekit.recipe import Recipe, nearest
from mergekit.recipe.language import METHOD_FILE

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "mergekit.methods"
"""Group of the entry points by which installed packages bring methods."""

_DIGEST = "__sha256__"  # of modules made of a recipe's Python file


def find_method(recipe: Recipe, findings: Findings, allow_code: bool = False) -> type[Method] | None:
    """The class that `merge_method` means; or None, after recording why there is none.

    Parameters:
        recipe: the recipe.
        findings: where mistakes are recorded.
        allow_code: whether a Python file that the recipe names may be run.
    """
    name = recipe.method
    if name in METHODS:
        return METHODS[name]
    try:
        if re.fullmatch(METHOD_FILE, name):
            return file_method(name, _folders(recipe), allow_code)
        return installed_method(name)
    except MethodError as error:
        problem = error.problem
        findings.error(problem.what, problem.place or recipe.place("merge_method"), problem.expected, problem.hint)
        return None


def _entry_points() -> Sequence[EntryPoint]:
    from importlib.metadata import entry_points

    return tuple(entry_points(group=GROUP))


def installed_methods() -> tuple[str, ...]:
    """Names of the methods that installed packages bring; none of their code is run."""
    return tuple(sorted({entry.name for entry in _entry_points()} - METHODS.keys()))


def installed_method(name: str) -> type[Method] | None:
    """A method of an installed package; None if no package has one of this name.

    Raises:
        MethodError: the package cannot be imported, what it has is no method, or two packages have one.
    """
    found = {entry.value: entry for entry in _entry_points() if entry.name == name}
    if not found:
        return None
    origins = [f"{entry.value} of {entry.dist.name if entry.dist else 'a package'}" for entry in found.values()]
    if len(found) > 1:
        what = f"several installed packages have a method `{name}`: {' and '.join(sorted(origins))}"
        raise MethodError(what, hint="uninstalling all but one of them")
    try:
        method = next(iter(found.values())).load()
    except (Exception, SystemExit) as error:
        what = f"the installed method `{name}` ({origins[0]}) cannot be loaded: {type(error).__name__}: {error}"
        raise MethodError(what, hint="another version of that package") from error
    return _checked(method, f"the installed method `{name}` ({origins[0]})")


def file_method(text: str, folders: Sequence[Path], allow_code: bool = False) -> type[Method]:
    """A method in a Python file, which is run.

    Parameters:
        text: ``PATH.py:NAME``.
        folders: where a relative path is looked up, the first folder first.
        allow_code: whether the file may be run.

    Raises:
        MethodError: it may not, it is not there, it fails, or it has no such method.
    """
    path, _, name = text.rpartition(":")
    candidates = list(dict.fromkeys(folder / Path(path).expanduser() for folder in folders))
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        where = " and ".join(f"`{candidate}`" for candidate in candidates)
        raise MethodError(f"there is no file `{path}`: looked for {where}")
    if not allow_code:
        what = f"`{text}` is Python code: running a recipe's Python file means trusting it with all that you may do"
        raise MethodError(what, hint=f"`--allow-code`, or `allow_code=True` in Python, if you trust {file}")
    members = vars(_module(file))
    if name not in members:
        methods = [known for known, value in members.items() if not list(flaws(value))]
        close = nearest(name, methods)
        listed = "one of " + ", ".join(f"`{known}`" for known in methods) if methods else "a method, and there is none"
        raise MethodError(f"there is no `{name}` in {file}", expected=listed, hint=close and f"`{path}:{close}`")
    return _checked(members[name], f"`{name}` in {file}")


def _folders(recipe: Recipe) -> list[Path]:
    beside = [Path(recipe.file).parent] if recipe.file and Path(recipe.file).is_file() else []
    return [*beside, Path()]


def _checked(found: object, called: str) -> type[Method]:
    for flaw in flaws(found):
        raise MethodError(f"{called} {flaw}")
    assert isinstance(found, type)
    return found


def _module(file: Path) -> ModuleType:
    """The module that a file makes; one that stays the same is not run twice."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise MethodError(f"{file} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    name = f"{file.stem}_{hashlib.sha256(bytes(file.resolve()) + content).hexdigest()[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        vars(module).update({"__file__": str(file.resolve()), _DIGEST: digest})
        sys.modules[name] = module  # where dataclasses and pickles look for it
        try:
            exec(compile(content, str(file), "exec"), vars(module))
        except MethodError:
            del sys.modules[name]
            raise
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            what = error.msg if isinstance(error, SyntaxError) else error
            place = place_in(str(file), error)
            raise MethodError(f"{file} fails: {type(error).__name__}: {what}", place=place) from error
    return sys.modules[name]


def method_file(method: type[Method]) -> Mapping[str, str] | None:
    """The Python file that a method was made of, with its hash; None for methods of packages."""
    module = vars(sys.modules[method.__module__])
    return {"file": module["__file__"], "sha256": module[_DIGEST]} if _DIGEST in module else None
