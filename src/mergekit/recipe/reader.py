"""From the text of a recipe to a checked `Recipe`."""

from __future__ import annotations

from dataclasses import replace

from mergekit.errors import Findings, Place, Problem, RecipeError
from mergekit.recipe.forms import Reading, Vocabulary
from mergekit.recipe.language import RECIPE, foreign
from mergekit.recipe.model import Recipe
from mergekit.recipe.nodes import Table, describe, parse
from mergekit.recipe.records import Record, homes, structure


def read_recipe(
    text: str, *, file: str | None = None, vocabulary: Vocabulary, language: Record[Recipe] = RECIPE
) -> tuple[Recipe | None, Findings]:
    r"""Read a recipe and report every mistake in its structure at once.

    Whether the parameters suit the method is not looked at here. After errors the recipe is what could be read, so
    that a caller can look for more mistakes: settings that could not be read are not in it, a source whose
    `layer_range` could not be read has none, and what was misspelled is taken as it was meant.

    Parameters:
        text: the recipe, one YAML document.
        file: name of the file, for messages.
        vocabulary: names of the methods and of their parameters.
        language: the table of the keys that may be written.

    Returns:
        The recipe, or None if a model, the method or the whole structure cannot be read; and the findings. Bad input
        is never raised.

    Example:
        >>> names = Vocabulary(methods=frozenset({"linear"}), parameters=frozenset({"weight"}))
        >>> recipe, findings = read_recipe("merge_method: linear\nmodels: [{model: a, wieght: 1}]", vocabulary=names)
        >>> print(findings.errors[0].what)
        `wieght` is not a key of an entry of `models`
    """
    findings = Findings()
    recipe = _read(text, file, vocabulary, language, findings)
    for problems in (findings.errors, findings.warnings):
        problems.sort(key=_line)
    return recipe, findings


def _read(
    text: str, file: str | None, vocabulary: Vocabulary, language: Record[Recipe], findings: Findings
) -> Recipe | None:
    document = parse(text, file, findings)
    if document.root is None:
        return None
    reason = foreign(document.root)
    if reason:
        findings.error(reason, Place("", file, document.root.line))
        return None
    if not isinstance(document.root, Table):
        place = Place("", file, document.root.line)
        findings.error(f"{describe(document.root)} is not a recipe", place, "a mapping such as `merge_method: linear`")
        return None
    reading = Reading(file, findings, vocabulary, homes(language), structure(language), document.lines)
    recipe = language.read(document.root, reading)
    return recipe and replace(recipe, text=text, file=file, lines=document.lines)


def _line(problem: Problem) -> int:
    return (isinstance(problem.place, Place) and problem.place.line) or 0


def decoded(content: bytes, file: str) -> str:
    """The text of a recipe's file.

    Parameters:
        content: its bytes.
        file: its name, for messages.

    Raises:
        RecipeError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise RecipeError([Problem(what, Place("", file, line), "a recipe in UTF-8")]) from error
