"""The generated parts of the reference of methods: a table of all, and a section for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mergekit.cli.methods import default_value, example_recipe, facts, models_taken
from mergekit.methods import METHODS, Parameter
from mergekit.methods.describe import Description, describe


def methods_part(part: str) -> str:
    """Markdown of a part of the page.

    Parameters:
        part: "overview" or "sections".
    """
    found = [describe(method) for method in METHODS.values()]
    return {"overview": _overview, "sections": _sections}[part](found)


def _overview(found: list[Description]) -> str:
    rows = [
        (
            f"[`{each.name}`](#{each.name})",
            each.title,
            each.needs.base,
            models_taken(each.needs),
            _markdown(each.summary),
            each.count,
        )
        for each in found
    ]
    return _table(("method", "title", "base", "models", "what it does", "passes"), rows)


def _sections(found: list[Description]) -> str:
    return "\n\n".join("\n\n".join(_section(each)) for each in found)


def _section(found: Description) -> Iterator[str]:
    yield f"## {found.name}"
    yield f"**{found.title}.** {_markdown(found.summary)}"
    yield from map(_markdown, found.formula)
    if found.parameters:
        rows = [_row(each, found.meanings[each.name]) for each in found.parameters]
        yield _table(("parameter", "type", "bounds", "one value per", "default", "meaning"), rows)
    else:
        yield "It has no parameters."
    yield "\n".join(f"- **{label}**: {_markdown(text)}" for label, text in facts(found))
    yield f"```yaml\n{example_recipe(found.name)}```"


def _row(parameter: Parameter, meaning: str) -> tuple[str, ...]:
    scope = "model" if parameter.per_model else "tensor"
    default = "required" if parameter.required else default_value(parameter)
    return f"`{parameter.name}`", parameter.kind, parameter.bounds, scope, default, _markdown(meaning)


def _markdown(text: str) -> str:
    """Text of a docstring: mathematics between single backticks."""
    return text.replace("``", "`")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
