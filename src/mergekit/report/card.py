"""The model card: README.md with what the hub reads at its top and what people read below."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from mergekit.plan import Model, Plan
from mergekit.recipe import Address, ModelRef
from mergekit.report.roles import bases, merged

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_MARKUP = re.compile(r"[\\`*\[\]<>&#|~$]|(?<!\w)_|_(?!\w)")
_TERMS = ("license", "license_name", "license_link")


def model_card(plan: Plan, title: str) -> str:
    """Text of README.md for a merge.

    Parameters:
        plan: the merge.
        title: heading, any text; the name of the output folder as a rule.
    """
    sections = [
        f"---\n{_front_matter(plan)}---",
        f"# {_escaped(title) or 'merge'}",
        f"This is a merge of pretrained {'language models' if 'config.json' in plan.texts else 'checkpoints'}, "
        "made with mergekit.",
        "## Merge details",
        "### Merge method",
        _method(plan),
        "### Models",
        "\n".join(f"* {_shown(ref)}" for ref in _merged_models(plan)),
        "### Configuration",
        _fenced(plan.recipe.text),
    ]
    return "\n\n".join(sections).encode("utf-8", "replace").decode() + "\n"


def is_hub_name(path: str) -> bool:
    """Whether a path can only be the name of a repository on the hub; nobody is asked.

    Example:
        >>> is_hub_name("org/name"), is_hub_name("~/name"), is_hub_name("models/a/b")
        (True, False, False)
    """
    return _HUB_NAME.fullmatch(path) is not None and not Path(path).exists()


def _front_matter(plan: Plan) -> str:
    refs = [model.ref for model in plan.models]
    addresses = [address for ref in refs for address in (ref.model, ref.adapter) if address]
    names = list(dict.fromkeys(address.path for address in addresses if is_hub_name(address.path)))
    library = {"library_name": "transformers"} if "config.json" in plan.texts else {}
    front: dict[str, object] = {**library, "tags": ["mergekit", "merge"], **_shared_terms(plan)}
    if names:
        front |= {"base_model": names, "base_model_relation": "merge"}
    return yaml.safe_dump(front, sort_keys=True, allow_unicode=True)


def _shared_terms(plan: Plan) -> Mapping[str, str]:
    """The licence of all parents, if it is one and the same."""
    first, *others = [_terms(model) for model in plan.models]
    return first if "license" in first and all(terms == first for terms in others) else {}


def _terms(model: Model) -> dict[str, str]:
    """What a model's own card says about its licence; nothing if there is no card, or none that can be read."""
    try:
        made = model.checkpoint.texts.get("README.md")
        text = made() if made else (model.checkpoint.root / "README.md").read_text("utf-8", errors="replace")
        match = _FRONT_MATTER.match(text)
        front = yaml.safe_load(match[1]) if match else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    said = front if isinstance(front, dict) else {}
    return {key: said[key] for key in _TERMS if isinstance(said.get(key), str)}


def _method(plan: Plan) -> str:
    method = plan.method
    title = _escaped(method.title)
    name = f"[{title}]({method.reference})" if method.reference.startswith("https://") else title
    text = f"This model was merged with the {name} method"
    found = " and ".join(_shown(plan.models[index].ref) for index in sorted(bases(plan)))
    return f"{text}, with {found} as base." if found else f"{text}."


def _merged_models(plan: Plan) -> Iterator[ModelRef]:
    """The models that were merged: without the base, except where it is an end of the path to the other model."""
    listed = merged(plan) | bases(plan) if plan.method.name == "slerp" else merged(plan) - bases(plan)
    return (model.ref for index, model in enumerate(plan.models) if index in listed)


def _shown(ref: ModelRef) -> str:
    return " + ".join(_linked(address) for address in (ref.model, ref.adapter) if address)


def _linked(address: Address) -> str:
    code = _code(str(address))
    return f"[{code}](https://huggingface.co/{address.path})" if is_hub_name(address.path) else code


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", _one_line(text))


def _ticks(text: str, least: int) -> str:
    """More backticks than stand together anywhere in a text."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _code(text: str) -> str:
    line, ticks = _one_line(text), _ticks(text, 1)
    pad = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _fenced(text: str) -> str:
    ticks = _ticks(text, 3)
    body = text if text.endswith("\n") else text + "\n"
    return f"{ticks}yaml\n{body}{ticks}"
