"""Chat templates: named, literal, or the one that most models have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib import resources

from mergekit.checkpoint import Checkpoint
from mergekit.errors import CheckpointError, Findings, Place
from mergekit.recipe import nearest

_LONGEST_NAME = 256  # characters
_SHORTEST_TEMPLATE = 20  # characters
_FILE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"


def template_names() -> tuple[str, ...]:
    """Names of the templates that come with mergekit."""
    folder = resources.files("mergekit.tokenizer") / "templates"
    return tuple(sorted(entry.name.removesuffix(".jinja") for entry in folder.iterdir()))


def model_template(checkpoint: Checkpoint) -> str | None:
    """The chat template of a model; of several the default one."""
    template = checkpoint.text(_FILE)
    if template is not None:
        return template.strip()
    settings = checkpoint.text(_SETTINGS)
    if settings is None:
        return None
    found = _read_object(settings, str(checkpoint.root / _SETTINGS)).get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found.strip() if isinstance(found, str) else None


def _read_object(text: str, place: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"not valid JSON: {error}", place=place) from error
    if not isinstance(found, dict):
        raise CheckpointError("not a JSON object", place=place)
    return found


def _mistake(template: str) -> str | None:
    from jinja2 import Environment, TemplateSyntaxError

    try:
        Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(_without_generation(template))
    except TemplateSyntaxError as error:
        return f"{error.message} in line {error.lineno} of the template"
    return None


def _without_generation(template: str) -> str:
    """The template without the `generation` tags that transformers adds to Jinja."""
    for tag in ("generation", "endgeneration"):
        for opening in ("{%", "{%-"):
            for closing in ("%}", "-%}"):
                template = template.replace(f"{opening} {tag} {closing}", "")
    return template


def choose_template(wanted: str, models: Sequence[Checkpoint], place: Place, findings: Findings) -> str | None:
    """The text of the chat template that a recipe asks for; None to keep the donor's.

    Parameters:
        wanted: ``auto`` for the one that most models have (of equals the first), a name of :func:`template_names`,
            or the template itself.
        models: the models in the recipe's order.
        place: where the recipe asks.
        findings: where mistakes are recorded.
    """
    if wanted == "auto":
        return _majority(models, findings)
    if len(wanted) < _LONGEST_NAME and "\n" not in wanted and "{" not in wanted:
        return _named(wanted, place, findings)
    if len(wanted) < _SHORTEST_TEMPLATE:
        what = f"`{wanted}` is too short to be a chat template"
        findings.error(what, place, f"`auto`, a Jinja template, or one of {', '.join(template_names())}")
    elif mistake := _mistake(wanted):
        findings.error(f"the chat template is not valid Jinja: {mistake}", place)
    return wanted


def _named(name: str, place: Place, findings: Findings) -> str | None:
    known = template_names()
    if name not in known:
        close = nearest(name, known)
        expected = f"`auto`, a Jinja template, or one of {', '.join(known)}"
        findings.error(f"unknown chat template `{name}`", place, expected, f"`{close}`" if close else None)
        return None
    source = resources.files("mergekit.tokenizer") / "templates" / f"{name}.jinja"
    return source.read_text(encoding="utf-8")


def _majority(models: Sequence[Checkpoint], findings: Findings) -> str | None:
    found = [template for model in models if (template := model_template(model))]
    if not found:
        findings.notice("no model has a chat template; none is written")
        return None
    return Counter(found).most_common(1)[0][0]  # equal counts stay in the order of first appearance


def tokenizer_config_with(text: str, place: str, template: str) -> str | None:
    """The text of a tokenizer_config.json that agrees with a chat template in a file of its own.

    A template inside is replaced; None where there is none, so that the file can stay as it is.

    Parameters:
        text: contents of the file.
        place: where it is, for messages.
        template: the chat template.

    Raises:
        CheckpointError: the file is not JSON.
    """
    settings = _read_object(text, place)
    if "chat_template" not in settings:
        return None
    settings["chat_template"] = template
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
