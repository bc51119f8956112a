"""What there is to know about a method, read off its class: declarations and docstring.

A docstring has the form of `mergekit.methods.ties.Ties`: one sentence; the formula; ``Parameters:``; a paragraph of
facts that begin with ``Shapes:``, ``Passes:``, ``Deterministic`` and ``Differs from the peer:``; ``Reference:``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from itertools import product

from mergekit.kernels import GRAIN
from mergekit.methods.contract import Method, Needs, Parameter

_PARAGRAPH = re.compile(r"\n\n(?=\S)")
_ITEM = re.compile(r"\n(?=\s*(?:[-*]|\d+\.)\s)")
_ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*): (?P<text>.*(?:\n {5,}.*)*)", re.MULTILINE)
_FACT = re.compile(
    r"(?:^|(?<=\. ))(?:(?P<label>Shapes|Passes|Memory|Reference|Differs from [^:.]{3,40}): |(?=Deterministic|Random))"
)
_NUMBER = re.compile(r"\b(one|two|three|four|five)\b")
_FIGURES = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_PROBE = (1024, 4 * GRAIN)  # a tensor whose rows are longer than a grain, and which is longer than rows by far


@dataclass(frozen=True, slots=True)
class Description:
    """A method in words.

    Parameters:
        name: in recipes.
        title: for people.
        summary: one sentence.
        formula: paragraphs of plain text; mathematics stand between double backticks.
        needs: how many models, and the base.
        parameters: as declared.
        meanings: of the parameters, by name.
        shapes: of tensors the method takes, and what is one vector to it.
        passes: how often the weights are read.
        memory: what is held at a time.
        determinism: what the result depends on beside the weights.
        differences: text by what the method differs from: "the peer", "the paper".
        source: where the method is published, with the equations.
        link: to it, empty without any.
    """

    name: str
    title: str
    summary: str
    formula: tuple[str, ...]
    needs: Needs
    parameters: tuple[Parameter, ...]
    meanings: Mapping[str, str]
    shapes: str
    passes: str
    memory: str
    determinism: str
    differences: Mapping[str, str]
    source: str
    link: str

    @property
    def count(self) -> str:
        """How often the weights are read, in figures; empty where the text has no numbers.

        Example:
            >>> from mergekit.methods.ties import Ties
            >>> describe(Ties).count
            '1 to 3'
        """
        found = sorted({_FIGURES[word] for word in _NUMBER.findall(self.passes)})
        if len(found) <= 1:
            return "".join(map(str, found))
        return f"{found[0]} {'or' if found[-1] - found[0] == 1 else 'to'} {found[-1]}"


def describe(method: type[Method]) -> Description:
    """Read a method's class; what its docstring does not say is empty.

    Example:
        >>> from mergekit.methods.slerp import Slerp
        >>> describe(Slerp).meanings
        {'t': 'position on the arc: 0 is the base, 1 the model; values outside extrapolate.'}
    """
    summary, *paragraphs = _PARAGRAPH.split(_docstring(method))
    entries = next((_entries(text) for text in paragraphs if text.startswith("Parameters:")), {})
    facts = dict(_facts(paragraphs))
    differences = {label[len("Differs from ") :]: text for label, text in facts.items() if label.startswith("Differs")}
    return Description(
        name=method.name,
        title=method.title,
        summary=_flow(summary),
        formula=tuple(_flow(text) for text in paragraphs if not _is_section(text)),
        needs=method.needs,
        parameters=method.parameters(),
        meanings={each.name: entries.get(each.name, each.doc) for each in method.parameters()},
        shapes=facts.get("Shapes", ""),
        passes=facts.get("Passes", ""),
        memory=facts.get("Memory", "") or _memory(method),
        determinism=facts.get("", ""),
        differences=differences,
        source=facts.get("Reference", ""),
        link=method.reference,
    )


def _docstring(method: type[Method]) -> str:
    """The docstring; that of the class itself, and not the signature that dataclasses put in its place."""
    text = vars(method).get("__doc__") or ""
    generated = is_dataclass(method) and text.startswith(f"{method.__name__}(")
    return "" if generated else inspect.cleandoc(text)


def _is_section(paragraph: str) -> bool:
    return paragraph.startswith(("Parameters:", "Example")) or _FACT.match(paragraph) is not None


def _flow(text: str) -> str:
    """Text without its line breaks, save those before items of a list."""
    return "\n".join(" ".join(part.split()) for part in _ITEM.split(text))


def _entries(section: str) -> dict[str, str]:
    """Texts of a section by name; an entry may be for several names."""
    found = _ENTRY.finditer(section)
    return {name: _flow(match["text"]) for match in found for name in match["names"].split(", ")}


def _facts(paragraphs: list[str]) -> Iterator[tuple[str, str]]:
    """Labels with their texts; what is said about determinism has none."""
    for paragraph in paragraphs:
        if paragraph.startswith(("Parameters:", "Example")) or not _FACT.match(paragraph):
            continue
        text = _flow(paragraph)
        marks = list(_FACT.finditer(text))
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        yield from (
            (mark["label"] or "", text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)
        )


def specimens(method: type[Method]) -> Iterator[Method]:
    """Instances for two models: one with the defaults, then others with every combination of flags."""
    declared = method.parameters()
    flags = [each for each in declared if each.kind == "bool"]
    fixed = {each.field: _value(each) for each in declared if each.kind != "bool"}
    for values in product(*([bool(each.default), not each.default] for each in flags)):
        yield method(**fixed, **{each.field: value for each, value in zip(flags, values, strict=True)})


def _value(parameter: Parameter) -> object:
    """The default, or half a unit above the lower bound of a required parameter."""
    value = 0.5 + (parameter.low or 0.0) if parameter.required else parameter.default
    return (value, value) if parameter.per_model else value


def _memory(method: type[Method]) -> str:
    """What a worker holds at a time, by the method's grain."""
    held = list(dict.fromkeys(_held(specimen.grain(_PROBE)) for specimen in specimens(method)))
    others = " or ".join(held[1:])
    return f"{held[0]} of every input at a time" + (f"; with other flags {others}" if others else "")


def _held(grain: int) -> str:
    if grain <= GRAIN:
        return "one stripe"
    return "whole rows" if grain < _PROBE[0] * _PROBE[1] else "a whole tensor"
