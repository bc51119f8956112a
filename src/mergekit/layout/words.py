"""The words that tensor names and config keys are made of, with synonyms made equal."""

from __future__ import annotations

import re
from functools import lru_cache

_SYNONYMS = {
    word: meaning
    for meaning, synonyms in {
        "vision": "visual vision image img video vit vpm vt",
        "audio": "audio acoustic speech sound apm",
        "text": "text language lang llm lm",
    }.items()
    for word in synonyms.split()
}
_PROJECTORS = frozenset({"projector", "merger", "connector", "aligner", "resampler"})
_PREDICTORS = frozenset({"mtp", "nextn"})
_LISTS = _PROJECTORS | _PREDICTORS | {"head", "heads", "adapter", "adapters"}
_EXPERTS = frozenset({"expert", "experts"})


@lru_cache(maxsize=65536)
def words(path: str) -> frozenset[str]:
    """Split a dotted name into its words.

    Example:
        >>> sorted(words("model.visual_tower.layers"))
        ['layers', 'model', 'tower', 'vision']
    """
    return frozenset(_SYNONYMS.get(word, word) for word in re.split(r"[._]", path.lower()) if word)


def modality(path: str) -> str | None:
    """Return "vision" or "audio" where the name says so; None for text and everything else."""
    return next((kind for kind in ("vision", "audio") if kind in words(path)), None)


def precedence(prefix: str) -> tuple[bool, bool]:
    """Rank of a stack where a bare entry of config.json may mean several.

    It is the language model's beside a tower, and the encoder's beside a decoder.

    Example:
        >>> max(["model.decoder.layers", "model.encoder.layers", "vision.encoder.layers"], key=precedence)
        'model.encoder.layers'
    """
    return modality(prefix) is None, "encoder" in words(prefix)


def is_projector(path: str) -> bool:
    """Whether a component of the name joins a vision or audio tower to the language model."""
    return bool(_PROJECTORS & words(path))


def predicts_further(path: str) -> bool:
    """Whether a name speaks of multi-token prediction.

    Example:
        >>> predicts_further("mtp.layers.0.mlp.up_proj.weight"), predicts_further("model.layers.0.mlp.up_proj.weight")
        (True, False)
    """
    return bool(_PREDICTORS & words(path))


def is_list(path: str) -> bool:
    """Whether a numbered prefix is a list of something else than transformer layers."""
    # A whole model may be called an expert, with layers inside (PI0).
    return bool(_LISTS & words(path)) or bool(_EXPERTS & words(path.rpartition(".")[2]))
