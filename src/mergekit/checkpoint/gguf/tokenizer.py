"""Rebuild tokenizer.json and its company from the vocabulary of a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from mergekit.checkpoint.gguf.vocabulary import Split, Vocabulary

_UNKNOWN, _CONTROL, _DEFINED, _UNUSED = 2, 3, 4, 5
_FILLER = re.compile(r"\[PAD\d+\]")  # made up by converters where the embedding has more rows than there are tokens
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}

_Json = dict[str, Any]


def tokenizer_text(vocabulary: Vocabulary) -> str:
    """Contents of tokenizer.json, as the library ``tokenizers`` reads it."""
    parts = _of_bytes(vocabulary) if vocabulary.kind == "bytes" else _of_pieces(vocabulary)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added(vocabulary)),
        "post_processor": _frame(vocabulary),
        **parts,
    }
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def settings_text(vocabulary: Vocabulary, longest: int) -> str:
    """Contents of tokenizer_config.json.

    Parameters:
        vocabulary: the tokens.
        longest: most tokens of a text.
    """
    named = {key: token for key, role in _ROLES.items() if (token := vocabulary.special(role)) is not None}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        **named,
    }
    return json.dumps(settings, ensure_ascii=False, indent=2) + "\n"


def generation_text(vocabulary: Vocabulary) -> str:
    """Contents of generation_config.json: where answers begin and end."""
    ids = vocabulary.ids
    ends = sorted({ids[role] for role in ("eos", "eot") if role in ids})
    end = ends[0] if len(ends) == 1 else ends or None
    entries = {"bos_token_id": ids.get("bos"), "eos_token_id": end, "pad_token_id": ids.get("padding")}
    return json.dumps({key: value for key, value in entries.items() if value is not None}, indent=2) + "\n"


def _added(vocabulary: Vocabulary) -> Iterator[_Json]:
    """Tokens that are found in a text before it is cut."""
    for number, kind in enumerate(vocabulary.types):
        if kind in (_UNKNOWN, _CONTROL, _DEFINED):
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            yield {"id": number, "content": vocabulary.tokens[number], **flags, "special": kind != _DEFINED}


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    unused = {number for number, kind in enumerate(vocabulary.types) if kind == _UNUSED}
    return {
        token: number
        for number, token in enumerate(vocabulary.tokens)
        if number not in unused or not _FILLER.fullmatch(token)
    }


def _frame(vocabulary: Vocabulary) -> _Json | None:
    """What is put around a text."""
    wanted = {"bos": vocabulary.begin, "eos": vocabulary.end}
    tokens = {role: vocabulary.special(role) for role, asked in wanted.items() if asked}
    around = {role: token for role, token in tokens.items() if token is not None}
    if not around:
        return None

    def framed(text: str, number: int) -> list[_Json]:
        begin, end = (
            [{"SpecialToken": {"id": around[role], "type_id": number}}] if role in around else [] for role in wanted
        )
        return [*begin, {"Sequence": {"id": text, "type_id": number}}, *end]

    return {
        "type": "TemplateProcessing",
        "single": framed("A", 0),
        "pair": framed("A", 0) + framed("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[role]], "tokens": [token]} for role, token in around.items()
        },
    }


def _model(vocabulary: Vocabulary, merges: list[str], **more: object) -> _Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **more,
        "vocab": _ids(vocabulary),
        "merges": merges,
    }


def _of_bytes(vocabulary: Vocabulary) -> _Json:
    split = vocabulary.split
    return {
        "normalizer": {"type": "NFC"} if split.compose else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(_cuts(split))},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _model(vocabulary, list(vocabulary.merges), ignore_merges=split.ignore_merges),
    }


def _cuts(split: Split) -> Iterator[_Json]:
    if split.digits:
        yield {"type": "Digits", "individual_digits": True}
    if split.pattern:
        yield {"type": "Split", "pattern": {"Regex": split.pattern}, "behavior": "Isolated", "invert": False}
    yield {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not split.pattern}


def _of_pieces(vocabulary: Vocabulary) -> _Json:
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    text = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    before: list[_Json] = [{"type": "Prepend", "prepend": _SPACE}] if vocabulary.space else []
    after: list[_Json] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if vocabulary.space else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, space]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [text, {"type": "ByteFallback"}, {"type": "Fuse"}, *after]},
        "model": _model(
            vocabulary, _merges(vocabulary), unk_token=vocabulary.special("unknown"), fuse_unk=True, byte_fallback=True
        ),
    }


def _merges(vocabulary: Vocabulary) -> list[str]:
    """The merges that make pieces in the order of their scores, as SentencePiece does."""
    ids = {token: number for token, number in _ids(vocabulary).items() if " " not in token}
    order = sorted(ids.values(), key=lambda number: -vocabulary.scores[number])
    return list(chain.from_iterable(_halves(vocabulary.tokens[number], ids) for number in order))


def _halves(piece: str, ids: Mapping[str, int]) -> list[str]:
    """Every pair of tokens that a piece may be made of."""
    cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    known = [(ids[left], ids[right], left, right) for left, right in cuts if left in ids and right in ids]
    return [f"{left} {right}" for *_, left, right in sorted(known)]
