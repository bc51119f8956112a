"""README.md of an adapter: what the hub reads at its top and what people read below."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from mergekit.recipe import ModelRef
from mergekit.report.card import is_hub_name

if TYPE_CHECKING:
    from mergekit.lora.extraction import Extraction
    from mergekit.lora.merging import AdapterMerge

_MARKUP = re.compile(r"[\\`*\[\]<>&#|~$]|(?<!\w)_|_(?!\w)")


def front_matter(paths: Iterable[str], tags: Sequence[str]) -> str:
    """What the hub reads: the names among the paths that can only be repositories; nobody is asked.

    Parameters:
        paths: of the models that an adapter comes from.
        tags: of the adapter.
    """
    names = list(dict.fromkeys(path for path in paths if is_hub_name(path)))
    front: dict[str, object] = {"library_name": "peft", "tags": list(tags)}
    if names:
        front["base_model"] = names
    return f"---\n{yaml.safe_dump(front, sort_keys=True, allow_unicode=True)}---"


def heading(title: str) -> str:
    """A title of any text as a heading."""
    return "# " + (_MARKUP.sub(r"\\\g<0>", _one_line(title)) or "adapter")


def shown(ref: ModelRef) -> str:
    """A model as text with a link, if it is a repository of the hub."""
    return " + ".join(_linked(str(address), address.path) for address in (ref.model, ref.adapter) if address)


def fenced(text: str, kind: str = "") -> str:
    """A block of code of any text."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{kind}\n{text.rstrip()}\n{ticks}"


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _linked(text: str, path: str) -> str:
    line = _one_line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line[:1] == "`" or line[-1:] == "`" else ""
    code = f"{ticks}{pad}{line}{pad}{ticks}"
    return f"[{code}](https://huggingface.co/{path})" if is_hub_name(path) else code


def extraction_card(plan: Extraction, record: Mapping[str, Any], title: str, invocation: str | None) -> str:
    """README.md of an extracted adapter.

    Parameters:
        plan: what was asked for.
        record: the report.
        title: heading; the name of the folder as a rule.
        invocation: the command.
    """
    refs = (plan.base, plan.tuned)
    paths = [address.path for ref in refs for address in (ref.model, ref.adapter) if address]
    sections = [
        front_matter(paths, ["mergekit", "peft"]),
        heading(title),
        f"This is a low-rank adapter of what {shown(plan.tuned)} does to {shown(plan.base)}, made with mergekit.",
        *_warning(plan),
        "\n".join(_table(record)),
        f"It holds {100 * record['totals']['energy']:.4g} % of the squared norm of the difference.",
        *([fenced(invocation, "sh")] if invocation else []),
    ]
    return "\n\n".join(sections).encode("utf-8", "replace").decode() + "\n"


def merge_card(plan: AdapterMerge, title: str) -> str:
    """README.md of a merged adapter.

    Parameters:
        plan: what was asked for.
        title: heading; the name of the folder as a rule.
    """
    method = plan.method
    name = f"[{method.title}]({method.reference})" if method.reference.startswith("https://") else method.title
    space = "" if plan.exact else ", in the common core space of their products"
    sections = [
        front_matter([member.base for member in plan.members], ["mergekit", "merge", "peft"]),
        heading(title),
        f"This is a merge of low-rank adapters with the {name} method{space}, made with mergekit.",
        "\n".join(f"* {shown(entry.model)}" for entry in plan.recipe.models),
        fenced(plan.recipe.text, "yaml"),
    ]
    return "\n\n".join(sections).encode("utf-8", "replace").decode() + "\n"


def _warning(plan: Extraction) -> Iterator[str]:
    if plan.resized:
        yield (
            f"> [!WARNING]\n> The vocabulary of the base has {plan.resized[0]} rows, that of the fine-tune "
            f"{plan.resized[1]}. Before the adapter is loaded, resize the embeddings of the base:\n"
            f"> `model.resize_token_embeddings({plan.resized[1]})`"
        )


def _table(record: Mapping[str, Any]) -> Iterator[str]:
    yield "| part | modules | rank | energy |"
    yield "|---|---:|---:|---:|"
    for part in record["parts"]:
        yield f"| {part['part']} | {part['changed']} | {rank_text(part['rank'])} | {100 * part['energy']:.4g} % |"


def rank_text(rank: Sequence[int] | None) -> str:
    """A range of ranks; that of modules that are held whole is none.

    Example:
        >>> rank_text([8, 8]), rank_text([2, 8]), rank_text(None)
        ('8', '2-8', 'whole')
    """
    if rank is None:
        return "whole"
    low, high = rank
    return f"{low}" if low == high else f"{low}-{high}"
