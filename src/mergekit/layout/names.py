"""Tensor names that differ between checkpoints of one model, and tensors that are no weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

from mergekit.layout.parts import Shape

_OLD_NORM = {"gamma": "weight", "beta": "bias"}
_NEW_NORM = {new: old for old, new in _OLD_NORM.items()}
_MAX_PREFIX = 2
_CARRIERS = frozenset({"base_model", "language_model", "model", "module", "text_model", "transformer"})
_RECOMPUTED = (
    (re.compile(r"(^|\.)(original_)?inv_freq$"), "rotary frequencies, which loaders compute from config.json"),
    (re.compile(r"(^|\.)(cos|sin)_cached$"), "rotary tables, which loaders compute from config.json"),
    (re.compile(r"(^|\.)masked_bias$"), "the constant of masked attention scores, which loaders set"),
    (re.compile(r"(^|\.)(position|token_type)_ids$"), "a constant list of indices, which loaders set"),
)
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")


def derived_buffer(name: str, shape: Shape = ()) -> str | None:
    """Say why a tensor is not a weight but a buffer that loaders recompute; None for weights.

    Parameters:
        name: tensor name.
        shape: its shape, by which a causal mask differs from a bias.

    Example:
        >>> derived_buffer("transformer.h.0.attn.bias", (1, 1, 1024, 1024))
        'a causal mask, which loaders compute'
        >>> derived_buffer("h.0.attn.bias", (768,)) is None
        True
    """
    if _MASK.search(name) and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]:
        return "a causal mask, which loaders compute"
    return next((reason for pattern, reason in _RECOMPUTED if pattern.search(name)), None)


def _spellings(name: str) -> Iterable[str]:
    """The name itself, and with the other generation's words for a LayerNorm's parameters."""
    yield name
    stem, dot, leaf = name.rpartition(".")
    other = _OLD_NORM.get(leaf) or _NEW_NORM.get(leaf)
    if dot and other and "norm" in stem.lower():
        yield f"{stem}.{other}"


def _heads(name: str) -> list[str]:
    """The leading prefixes of a name that another checkpoint may leave out, shortest first."""
    components = name.split(".")
    heads = (components[:length] for length in range(1, min(_MAX_PREFIX, len(components) - 1) + 1))
    return [".".join(head) + "." for head in heads if not any(component.isdigit() for component in head)]


def _best_prefix(names: Collection[str], donor: Collection[str], known: frozenset[str]) -> str:
    """The prefix whose removal from `donor` makes most of `names` meet; empty if none does."""
    wanted = {spelling for name in names for spelling in _spellings(name)}
    votes = Counter(
        head for name in donor if name not in known for head in _heads(name) if name.removeprefix(head) in wanted
    )
    return min(votes, key=lambda head: (-votes[head], len(head)), default="")


def _core(name: str) -> str:
    """The name without the leading words that only say where in a larger model the language model hangs."""
    components = name.split(".")
    carried = next((place for place, word in enumerate(components[:-1]) if word not in _CARRIERS), len(components) - 1)
    return ".".join(components[carried:])


def _unique_cores(names: Iterable[str]) -> dict[str, str]:
    """Names by their core, where no other name has the same."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_core(name), []).append(name)
    return {core: own[0] for core, own in found.items() if len(own) == 1}


def align_names(names: Collection[str], donor: Collection[str]) -> dict[str, str]:
    """Map each tensor name of a model to the name that the donor uses for it.

    A name that the donor has too stays. Others meet it by ``LayerNorm.gamma``/``beta`` for ``weight``/``bias``, or by
    one leading prefix (``bert.``, ``transformer.``, ``model.``) that one of both lists has throughout and the other
    has not, or by where the language model hangs in a larger one (``language_model.model.``, ``model.language_model.``
    and ``model.`` mean the same). Names that meet nothing map to themselves, and no two names meet the same one.

    Parameters:
        names: tensor names of the other model.
        donor: tensor names of the model that decides.

    Example:
        >>> align_names(["wte.weight", "lm_head.weight"], ["transformer.wte.weight", "lm_head.weight"])
        {'wte.weight': 'transformer.wte.weight', 'lm_head.weight': 'lm_head.weight'}
        >>> align_names(["model.norm.weight"], ["model.language_model.norm.weight", "model.visual.norm.weight"])
        {'model.norm.weight': 'model.language_model.norm.weight'}
    """
    known = frozenset(names) & frozenset(donor)
    missing = [name for name in names if name not in known]
    free = set(donor) - known
    added = _best_prefix(missing, free, known)
    removed = _best_prefix(free, missing, known)
    aligned = {name: name for name in names}
    for name in missing:
        candidates = (
            candidate
            for spelling in _spellings(name)
            for candidate in (spelling, added + spelling, spelling.removeprefix(removed))
            if candidate in free
        )
        if (match := next(candidates, None)) is not None:
            free.remove(match)
            aligned[name] = match
    cores = _unique_cores(free)
    for core, name in _unique_cores(name for name in missing if aligned[name] == name).items():
        aligned[name] = cores.get(core, name)
    return aligned
