"""Prompts: read from files, and cut into tokens as the base model's tokenizer does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mergekit.checkpoint import Checkpoint
from mergekit.errors import CheckpointError, MissingModelError
from mergekit.tokenizer import read_table

_BYTES = 256  # tokens of a vocabulary that is the bytes themselves
_ROLES = ("tokenizer_config.json", "special_tokens_map.json")

Encoder = Callable[[str], list[int]]
"""Makes token ids of a prompt."""


def prompts_in(name: str) -> tuple[str, ...]:
    """The prompts in a file: a .json file with a list of texts, or else a text file with one in each line.

    Parameters:
        name: path of the file.

    Raises:
        ValueError: there is no such file, or no prompt in it.
    """
    file = Path(name).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise ValueError(f"`{name}` cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"`{name}` is not {'JSON' if file.suffix == '.json' else 'UTF-8'}") from error
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"`{name}` does not hold a list of texts")
    prompts = tuple(each for each in found if each.strip())
    if not prompts:
        raise ValueError(f"`{name}` has no prompts")
    return prompts


def encoder_of(checkpoint: Checkpoint, rows: int, notices: list[str]) -> Encoder:
    """What cuts prompts for a model: its BOS token, if it has one, and then the prompt without further special tokens.

    Parameters:
        checkpoint: the model.
        rows: tokens that its embedding knows.
        notices: is added to where the bytes of a text are its tokens.

    Raises:
        MissingModelError: it has no tokenizer.
        CheckpointError: its tokenizer cannot be read.
    """
    table = read_table(checkpoint)
    if table is None:
        if rows != _BYTES:
            what = "there is no tokenizer, and prompts are cut into tokens"
            hint = "`gate_mode: random`, which needs no prompts"
            raise MissingModelError(what, place=str(checkpoint.root), expected="tokenizer.json", hint=hint)
        notices.append(f"{checkpoint.root} has no tokenizer and {_BYTES} tokens: they are taken to be bytes")
        return lambda text: list(text.encode())
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(table.content))
    begin = special_token(checkpoint, "bos_token") or ""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(begin + text, add_special_tokens=False).ids
        if not ids or max(ids) >= rows:
            what = f"the prompt {text[:40]!r} is cut into {len(ids) or 'no'} tokens" + (
                f", among them {max(ids)}, and the embedding has {rows} rows" if ids else ""
            )
            raise CheckpointError(what, place=table.place)
        return ids

    return encode


def special_token(checkpoint: Checkpoint, role: str) -> str | None:
    """Text of a model's special token as its tokenizer's settings name it, or None.

    Parameters:
        checkpoint: the model.
        role: ``bos_token``.
    """
    for name in _ROLES:
        text = checkpoint.text(name)
        token = json.loads(text).get(role) if text else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return None


def padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of one length, filled on the left, and which of them are the prompts'.

    Example:
        >>> padded([[5, 6], [7]], 0)
        ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    longest = max(map(len, prompts))
    missing = [longest - len(prompt) for prompt in prompts]
    ids = [[pad] * lack + list(prompt) for lack, prompt in zip(missing, prompts, strict=True)]
    return ids, [[0] * lack + [1] * (longest - lack) for lack in missing]
