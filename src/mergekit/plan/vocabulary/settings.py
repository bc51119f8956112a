"""Token ids in config.json and generation_config.json, when the output has another tokenizer than the donor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mergekit.layout import rewrite

_ENDS = ("_token_id", "_token_ids", "_token_index")
# What a model stops at and pads with belongs to its tokenizer, whichever token that is.
_OF_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")
_Path = tuple[str, ...]


def with_token_ids(
    text: str, old: Mapping[str, int], new: Mapping[str, int], chosen: Mapping[str, object]
) -> tuple[str, tuple[str, ...]]:
    """A config whose token ids mean in the new vocabulary what they meant in the old one.

    Beginning, end and padding are the chosen model's where it names them.

    Parameters:
        text: JSON; everything else in it stays as it is.
        old: ids of the vocabulary it was written for.
        new: ids of the output's.
        chosen: the same config of the model whose tokenizer the output has.

    Returns:
        The text, and the entries whose token the new vocabulary does not have; they stay as they are.

    Example:
        >>> with_token_ids('{"eos_token_id": 2, "image_token_id": 7}', {"<img>": 7}, {"<img>": 3}, {"eos_token_id": 9})
        ('{"eos_token_id": 9, "image_token_id": 3}', ())
    """
    texts = {number: token for token, number in old.items()}
    changes: dict[_Path, object] = {}
    lost = []
    for path, value in _entries(json.loads(text)):
        if path[-1] in _OF_TOKENIZER and chosen.get(path[-1]) is not None:
            moved = chosen[path[-1]]
        else:
            moved = _moved(value, texts, new)
        if moved is None:
            lost.append(".".join(path))
        elif moved != value:
            changes[path] = moved
    return (rewrite(text, changes) if changes else text), tuple(lost)


def _entries(config: Mapping[str, Any], path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _entries(value, (*path, key))
        elif key.endswith(_ENDS) and _is_ids(value):
            yield (*path, key), value


def _is_ids(value: object) -> bool:
    found = value if isinstance(value, list) else [value]
    return bool(found) and all(type(number) is int and number >= 0 for number in found)


def _moved(value: Any, texts: Mapping[int, str], new: Mapping[str, int]) -> object:
    """The ids that the same tokens have now; None if there is one that has none."""
    numbers = [new.get(texts.get(number, "")) for number in (value if isinstance(value, list) else [value])]
    if None in numbers:
        return None
    return numbers if isinstance(value, list) else numbers[0]
