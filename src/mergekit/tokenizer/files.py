"""The tokenizer files of the output: copied byte for byte, written anew, or left out.

Public: :class:`TokenizerFiles`, :func:`tokenizer_files`, :func:`table_text`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from mergekit.checkpoint import Checkpoint
from mergekit.checkpoint.companions import TOKENIZER, is_like
from mergekit.checkpoint.finding import is_there
from mergekit.errors import CheckpointError
from mergekit.tokenizer.tables import FILE, TokenTable

_SETTINGS = "tokenizer_config.json"
_ROLES = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_VOCABULARIES = "vocab.json merges.txt vocab.txt vocab.bpe *.model *.tiktoken tekken.json"
"""What some loaders read instead of tokenizer.json: ordinary tokens."""
_LISTS = ("additional_special_tokens", "extra_special_tokens")

_Json = dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Tokenizer files by their names in the output.

    Parameters:
        copies: files that are copied as they are.
        texts: contents of files that are written.
        remarks: what is not as in the model, one sentence each.
    """

    copies: Mapping[str, Path]
    texts: Mapping[str, str]
    remarks: tuple[str, ...] = ()


def tokenizer_files(checkpoint: Checkpoint, before: TokenTable, after: TokenTable) -> TokenizerFiles:
    """The tokenizer files of a model, for a table that was made from its own.

    Only files beside the weights count, not those in folders below; chat templates are among them.

    Parameters:
        checkpoint: the model whose tokenizer is taken.
        before: its table, as :func:`mergekit.tokenizer.tables.read_table` gives it.
        after: the output's table; `before` itself if nothing is changed.

    Raises:
        CheckpointError: a file that has to be edited is not a JSON object, or cannot be read.
    """
    files = _in_folder(checkpoint.root)
    texts = {name: make() for name, make in checkpoint.texts.items() if is_like(name, TOKENIZER)}
    dropped: dict[str, None] = {}
    remarks: tuple[str, ...] = ()
    if after is not before:
        dropped = _dropped((*files, *texts), before, after)
        texts |= dict(_edited(checkpoint, before, after, bool(dropped)))
        remarks = tuple(_remarks(dropped, texts, before, after))
    return TokenizerFiles(
        {name: file for name, file in files.items() if name not in texts and name not in dropped},
        {name: text for name, text in texts.items() if name not in dropped},
        remarks,
    )


def table_text(table: TokenTable) -> str:
    """Contents of the tokenizer.json of a table, in the style of ``tokenizers``."""
    return json.dumps(table.content, indent=2, ensure_ascii=False)


def _in_folder(root: Path) -> dict[str, Path]:
    files = sorted(root.iterdir()) if root.is_dir() else []
    return {file.name: file for file in files if is_like(file.name, TOKENIZER) and is_there(root, file.name)}


def _dropped(names: Iterable[str], before: TokenTable, after: TokenTable) -> dict[str, None]:
    """The files that do not say any more what ordinary tokens there are."""
    old, new = _ordinary(before), _ordinary(after)
    if new.items() <= before.ids.items() and old.items() <= after.ids.items():
        return {}
    return {name: None for name in names if is_like(name, _VOCABULARIES)}


def _ordinary(table: TokenTable) -> dict[str, int]:
    return {text: number for text, number in table.ids.items() if text not in table.added}


def _remarks(
    dropped: Mapping[str, None], texts: Mapping[str, str], before: TokenTable, after: TokenTable
) -> Iterator[str]:
    if dropped:
        listed = ", ".join(f"`{name}`" for name in dropped)
        yield f"{listed} left out: what reads them instead of `{FILE}` would see other tokens"
    edited = ", ".join(f"`{name}`" for name in (_SETTINGS, _ROLES, _ADDED) if name in texts)
    if edited and before.ids.keys() - after.ids.keys():
        yield f"{edited} edited: tokens without a row are not named any more"


def _edited(checkpoint: Checkpoint, before: TokenTable, after: TokenTable, dropped: bool) -> Iterator[tuple[str, str]]:
    """The files that other tokens change, with their new contents."""
    yield FILE, table_text(after)
    removed = before.ids.keys() - after.ids.keys()
    settings, roles, numbers = (_object(checkpoint, name) for name in (_SETTINGS, _ROLES, _ADDED))
    if settings is not None:
        named = {key: None if _names(key, value, removed) else value for key, value in settings.items()}
        yield from _changed(_SETTINGS, settings, _with_decoder(_with_lists(named, before, after), before, after))
    if roles is not None:
        named = {key: value for key, value in roles.items() if not _names(key, value, removed)}
        yield from _changed(_ROLES, roles, _with_lists(named, before, after))
    if numbers is not None or (_has_vocabulary(checkpoint) and not dropped):
        old = numbers or {}
        kept = {text: after.ids.get(text, number) for text, number in old.items() if text not in removed}
        yield from _changed(_ADDED, old, kept | _uncounted(before, after))


def _changed(name: str, old: _Json, new: _Json) -> Iterator[tuple[str, str]]:
    if new != old:
        yield name, json.dumps(new, indent=2, ensure_ascii=False) + "\n"


def _object(checkpoint: Checkpoint, name: str) -> _Json | None:
    place = str(checkpoint.root / name)
    try:
        text = checkpoint.text(name)
        found = None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not valid JSON: {error}", place=place) from error
    except OSError as error:
        raise CheckpointError(f"the file cannot be read: {error.strerror}", place=place) from error
    if text is not None and not isinstance(found, dict):
        raise CheckpointError("not a JSON object", place=place)
    return found


def _content(token: object) -> object:
    """The text of a token, which may be written with its flags."""
    return token.get("content") if isinstance(token, dict) else token


def _names(key: str, value: object, removed: Iterable[str]) -> bool:
    """Whether an entry gives a role (``pad_token``) to one of some tokens."""
    text = _content(value) if key.endswith("_token") else None
    return isinstance(text, str) and text in removed


def _with_lists(content: _Json, before: TokenTable, after: TokenTable) -> _Json:
    """The same with the lists of special tokens brought up to date."""
    gained = [text for text, flags in after.added.items() if text not in before.added and flags["special"]]
    removed = before.ids.keys() - after.ids.keys()
    changed = {}
    for key in _LISTS:
        if isinstance(old := content.get(key), list):
            kept = [token for token in old if not (isinstance(_content(token), str) and _content(token) in removed)]
            there = {text for token in kept if isinstance(text := _content(token), str)}
            changed[key] = kept + [text for text in gained if text not in there]
    return content | changed


def _with_decoder(content: _Json, before: TokenTable, after: TokenTable) -> _Json:
    """The same with the flags of added tokens, by their ids, brought up to date."""
    old = content.get("added_tokens_decoder")
    if not isinstance(old, dict):
        return content
    removed = before.ids.keys() - after.ids.keys()
    owned = {str(number) for number in after.ids.values()}

    def right(number: str, flags: object) -> bool:
        text = _content(flags)
        if isinstance(text, str) and text in after.ids:
            return number == str(after.ids[text])
        return number not in owned and not _names("_token", flags, removed)

    kept = {number: flags for number, flags in old.items() if right(number, flags)}
    there = {text for flags in kept.values() if isinstance(text := _content(flags), str)}
    lost = {text for flags in old.values() if isinstance(text := _content(flags), str)} - there
    more = [text for text in after.added if text not in there and (text in lost or text not in before.added)]
    return content | {"added_tokens_decoder": kept | {str(after.ids[text]): _decoded(text, after) for text in more}}


def _decoded(text: str, table: TokenTable) -> _Json:
    """An added token as transformers writes it: the flags in the order of their names."""
    return {"content": text, **dict(sorted(table.added[text].items()))}


def _uncounted(before: TokenTable, after: TokenTable) -> dict[str, int]:
    """The added tokens that are in no file of ordinary tokens."""
    vocab = before.content["model"]["vocab"]
    known = {text for text, _ in vocab} if isinstance(vocab, list) else vocab
    return {text: after.ids[text] for text in after.added if text not in known}


def _has_vocabulary(checkpoint: Checkpoint) -> bool:
    return any(is_like(name, _VOCABULARIES) for name in (*_in_folder(checkpoint.root), *checkpoint.texts))
