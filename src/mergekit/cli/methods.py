"""``mergekit methods``: what can be written after ``merge_method``."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Output, print_json

if TYPE_CHECKING:
    from mergekit.methods import Needs, Parameter
    from mergekit.methods.describe import Description

_WIDTH = 80
_LABEL = 18  # columns of the names of facts and parameters
_FORMULA = re.compile(r"``(.+?)``")
_PACKAGE = Path(__file__).parents[1]
_EXAMPLES = (_PACKAGE / "examples", _PACKAGE.parents[1] / "examples" / "recipes")  # installed, and in the repository


def example_recipe(name: str) -> str:
    """The example that comes with mergekit for a method; empty without one."""
    files = (folder / f"{name}.yml" for folder in _EXAMPLES)
    return next((file.read_text("utf-8") for file in files if file.is_file()), "")


def _known(_ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    """Refuse a name that no method has."""
    if name is None:
        return None
    from mergekit.methods import METHODS
    from mergekit.plan.methods import installed_methods

    known = [*METHODS, *installed_methods()]
    if name in known:
        return name
    if ".py" in name:
        what = f"`{name}`: a Python file is not run to explain it, only methods that are installed are explained"
        raise click.UsageError(f"{what}\n  try its docstring, or a recipe with `merge_method: ./file.py:Name`")
    near = get_close_matches(name.lower().replace("-", "_"), known, n=3, cutoff=0.5)
    hint = " or ".join(f"`{other}`" for other in near) if near else "`mergekit methods`, which lists all"
    raise click.UsageError(f"unknown method `{name}`\n  try {hint}")


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("name", required=False, callback=_known)
@option(GENERAL, "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
@click.help_option("-h", "--help")
def methods(name: str | None, as_json: bool) -> None:
    """List the merge methods, or explain the method NAME.

    The list says which models a method takes, how often it reads the weights, and what it does; methods of installed
    packages come last. The explanation has the formula, the parameters, the differences from the paper and from the
    peer (the package of the same name on PyPI, 0.1.5), the reference, and an example recipe.
    """
    output = Output(as_json)
    with output.failures():
        if name is not None:
            found = _described(name)
            _show(output, explained(found), {"method": record(found)})
        else:
            known = list(_all_described(output))
            _show(output, listed(known), {"methods": [record(each) for each in known]})


def _described(name: str) -> Description:
    """A method of mergekit or of an installed package, under the name that recipes use."""
    from mergekit.methods import METHODS
    from mergekit.methods.describe import describe
    from mergekit.plan.methods import installed_method

    method = METHODS.get(name) or installed_method(name)
    assert method is not None, f"`{name}` is known"
    return replace(describe(method), name=name)


def _all_described(output: Output) -> Iterator[Description]:
    """All methods; those of installed packages that cannot be loaded are warned of."""
    from mergekit.methods import METHODS, MethodError
    from mergekit.plan.methods import installed_methods

    def loaded(name: str) -> Iterator[Description]:
        try:
            yield _described(name)
        except MethodError as error:
            output.warn([error.problem])

    yield from map(_described, METHODS)
    for name in installed_methods():
        yield from loaded(name)


def _show(output: Output, lines: Iterator[str], found: Mapping[str, object]) -> None:
    if output.as_json:
        print_json({"ok": True, **found})
    else:
        click.echo("\n".join(lines))


def record(found: Description) -> dict[str, object]:
    """A description for programs."""
    return {
        "name": found.name,
        "title": found.title,
        "summary": found.summary,
        "formula": [plain(paragraph) for paragraph in found.formula],
        "base": found.needs.base,
        "models": {"least": found.needs.least, "most": found.needs.most},
        "parameters": [_parameter_record(each, found.meanings[each.name]) for each in found.parameters],
        "shapes": found.shapes,
        "passes": found.passes,
        "memory": found.memory,
        "determinism": found.determinism,
        "differences": dict(found.differences),
        "reference": found.source,
        "link": found.link,
        "example": example_recipe(found.name),
    }


def _parameter_record(parameter: Parameter, meaning: str) -> dict[str, object]:
    return {
        "name": parameter.name,
        "kind": parameter.kind,
        "per_model": parameter.per_model,
        "required": parameter.required,
        "default": parameter.default,
        "low": parameter.low,
        "high": parameter.high,
        "meaning": plain(meaning),
    }


def plain(text: str) -> str:
    """Text of a docstring for a terminal: mathematics without the double backticks."""
    return _FORMULA.sub(r"\1", text)


def models_taken(needs: Needs) -> str:
    """How many models, the base not counted.

    Example:
        >>> from mergekit.methods import Needs
        >>> models_taken(Needs("required", least=2)), models_taken(Needs("ignored", most=1))
        ('2 or more', '1')
    """
    if needs.most is None:
        return f"{needs.least} or more"
    return f"{needs.least}" if needs.most == needs.least else f"{needs.least} to {needs.most}"


def inputs_taken(needs: Needs) -> str:
    """How many models, and what of a base."""
    bases = {"required": ", and a base", "optional": ", and a base if wanted", "ignored": ""}
    return models_taken(needs) + bases[needs.base]


def default_value(parameter: Parameter) -> str:
    """The default as recipes spell it; "none" where it is no value."""
    value = parameter.default
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def specification(parameter: Parameter) -> str:
    """Type, bounds, scope and default of a parameter in half a line."""
    kinds = {"float": "number", "int": "whole number", "bool": "true or false", "str": "text"}
    parts = [
        kinds[parameter.kind],
        parameter.bounds,
        "one per model" if parameter.per_model else "",
        "required" if parameter.required else f"default {default_value(parameter)}",
    ]
    return ", ".join(part for part in parts if part)


def facts(found: Description) -> Iterator[tuple[str, str]]:
    """What stands in a table: label and text, where there is one."""
    table = [
        ("models", inputs_taken(found.needs)),
        ("shapes", found.shapes),
        ("passes", found.passes),
        ("memory", found.memory),
        ("randomness", found.determinism),
        *((f"unlike {other}", text) for other, text in found.differences.items()),
        ("reference", found.source if found.link in found.source else f"{found.source} {found.link}".strip()),
    ]
    return ((label, text) for label, text in table if text)


def listed(found: list[Description]) -> Iterator[str]:
    """The table of all methods."""
    name = max(len(each.name) for each in found) + 2
    yield f"{'method':<{name}}{'base':<10}{'models':<11}passes"
    for each in found:
        base = "-" if each.needs.base == "ignored" else each.needs.base
        yield ""
        yield f"{each.name:<{name}}{base:<10}{models_taken(each.needs):<11}{each.count}"
        yield from _wrapped(f"{each.title}: {each.summary}", "  ")
    yield ""
    yield "`mergekit methods NAME` explains one of them."


def explained(found: Description) -> Iterator[str]:
    """All about one method."""
    yield f"{found.name}: {found.title}" if found.title else found.name
    yield ""
    for paragraph in (found.summary, *found.formula):
        yield from _wrapped(paragraph, "  ")
        yield ""
    for label, text in facts(found):
        yield from _wrapped(text, " " * _LABEL, label)
    if found.parameters:
        yield from ("", "parameters")
    for each in found.parameters:
        yield from _wrapped(specification(each), " " * (_LABEL + 2), f"  {each.name}")
        yield from _wrapped(found.meanings[each.name], " " * (_LABEL + 2))
    example = example_recipe(found.name)
    if example:
        yield from ("", "example", textwrap.indent(example, "  ").rstrip())


def _wrapped(text: str, indent: str, label: str = "") -> Iterator[str]:
    """Lines of at most 80 columns; a label stands before the first, on a line of its own if it is too long."""
    if label and len(label) >= len(indent):
        yield label
        label = ""
    first = label.ljust(len(indent))
    for line in _FORMULA.sub(_unbroken, text).split("\n"):
        wrapper = textwrap.TextWrapper(_WIDTH, first, indent, break_long_words=False, break_on_hyphens=False)
        yield from (row.replace("\N{NO-BREAK SPACE}", " ") for row in wrapper.wrap(line))
        first = indent


def _unbroken(formula: re.Match[str]) -> str:
    """Mathematics that stay on one line, if they fit one."""
    return formula[1].replace(" ", "\N{NO-BREAK SPACE}") if len(formula[1]) <= _WIDTH - _LABEL else formula[1]
