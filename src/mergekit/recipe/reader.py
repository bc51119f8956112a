"""From the text of a recipe to a checked `Recipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic

from mergekit.errors import Findings, Place, Problem, RecipeError
from mergekit.recipe.forms import Reading, T, Vocabulary
from mergekit.recipe.language import RECIPE, foreign
from mergekit.recipe.model import Recipe
from mergekit.recipe.nodes import Document, Node, Table, describe, parse
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
    document = read_document(text, file=file, vocabulary=vocabulary, language=language, refused=foreign)
    found = document.meaning
    return found and replace(found, text=text, file=file, lines=document.lines), document.findings


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """A document that has been read.

    Parameters:
        meaning: what it means, or None if it cannot be read.
        lines: the line of everything that is written in it, by path.
        findings: mistakes and remarks.
    """

    meaning: T | None
    lines: Mapping[str, int]
    findings: Findings


def read_document(
    text: str,
    *,
    file: str | None = None,
    vocabulary: Vocabulary,
    language: Record[T],
    refused: Callable[[Node], str | None] = lambda _: None,
) -> Read[T]:
    """Read one YAML document in any language that is a table of keys; see :func:`read_recipe`.

    Parameters:
        text: the document.
        file: its name, for messages.
        vocabulary: names that the language takes from outside.
        language: the table of the keys that may be written.
        refused: says why a document is none of this language at all.
    """
    findings = Findings()
    document = parse(text, file, findings)
    found = (
        None if document.root is None else _read(document, document.root, file, vocabulary, language, refused, findings)
    )
    for problems in (findings.errors, findings.warnings):
        problems.sort(key=_line)
    return Read(found, document.lines, findings)


def _read(
    document: Document,
    root: Node,
    file: str | None,
    vocabulary: Vocabulary,
    language: Record[T],
    refused: Callable[[Node], str | None],
    findings: Findings,
) -> T | None:
    reason = refused(root)
    if reason:
        findings.error(reason, Place("", file, root.line))
        return None
    if not isinstance(root, Table):
        place = Place("", file, root.line)
        findings.error(f"{describe(root)} is not a recipe", place, "a mapping such as `merge_method: linear`")
        return None
    reading = Reading(file, findings, vocabulary, homes(language), structure(language), document.lines)
    return language.read(root, reading)


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
