"""Tiny tokenizers of every kind, as texts of tokenizer.json, and checkpoints that hold them."""

import json
from pathlib import Path

from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from mergekit.checkpoint import Checkpoint
from mergekit.tokenizer.tables import FLAGS, parse_table

LETTERS = "abcde"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = st.text(LETTERS + " ", max_size=24)
PLAIN = dict.fromkeys(FLAGS, False)
SPECIAL = PLAIN | {"special": True}


def tokenizer_json(model, added=(), ids=None, **parts):
    """Contents of a tokenizer.json.

    Parameters:
        model: its model, with a vocabulary.
        added: pairs of a text and flags.
        ids: ids to be written for the added tokens; those that the library gives, if they follow the vocabulary.
    """
    vocab = model["vocab"]
    known = {text: number for number, (text, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
    following = iter(range(len(vocab), len(vocab) + len(added)))
    numbers = [known[text] if text in known else next(following) for text, _ in added]
    entries = [
        {"id": number, "content": text, **flags} for number, (text, flags) in zip(ids or numbers, added, strict=True)
    ]
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        **parts,
        "model": model,
    }
    return json.dumps(whole, ensure_ascii=False)


def bpe_model(tokens, merges, **more):
    vocab = tokens if isinstance(tokens, dict) else {text: number for number, text in enumerate(tokens)}
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
        "vocab": vocab,
        "merges": [list(pair) for pair in merges],
    }


def byte_level(model, added=(), **parts):
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return tokenizer_json(model, added, **{"pre_tokenizer": cut, "decoder": cut, **parts})


def unigram_model(pieces, unk_id=0, byte_fallback=False):
    return {
        "type": "Unigram",
        "unk_id": unk_id,
        "vocab": [list(piece) for piece in pieces],
        "byte_fallback": byte_fallback,
    }


def wordpiece_model(tokens):
    vocab = {text: number for number, text in enumerate(tokens)}
    return {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }


def wordlevel_model(tokens):
    return {"type": "WordLevel", "vocab": {text: number for number, text in enumerate(tokens)}, "unk_token": "[UNK]"}


SPACES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
WORDS = {"type": "Whitespace"}


def table_of(text, place="tokenizer.json"):
    return parse_table(text, place)


def checkpoint_of(folder: Path, files=None, texts=None):
    """A model folder with these small files and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (files or {}).items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    made = {name: (lambda text=text: text) for name, text in (texts or {}).items()}
    return Checkpoint(folder, {}, {}, (), (), made)


_word = st.text(LETTERS, min_size=2, max_size=5)
_flags = st.fixed_dictionaries({flag: st.booleans() for flag in FLAGS})
added_tokens = st.lists(
    st.tuples(st.sampled_from(["<x>", "<y>", "<|z|>", "[pad]", "ab", "éa", "👍"]), _flags),
    max_size=4,
    unique_by=lambda pair: pair[0],
)


@st.composite
def _merges(draw, first):
    """Tokens and merges that grow from single characters."""
    tokens, merges = list(first), []
    for _ in range(draw(st.integers(0, 8))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if "".join(pair) not in tokens and len("".join(pair)) < 7:
            tokens.append("".join(pair))
            merges.append(pair)
    return tokens, merges


@st.composite
def _numbered(draw, tokens):
    """Ids in any order, with holes between."""
    gaps = draw(st.booleans())
    order = draw(st.permutations(tokens)) if draw(st.booleans()) else tokens
    numbers, number = {}, 0
    for text in order:
        number += draw(st.integers(0, 2)) if gaps else 0
        numbers[text] = number
        number += 1
    return numbers


@st.composite
def bpe_texts(draw):
    tokens, merges = draw(_merges([*LETTERS, "▁"]))
    return tokenizer_json(bpe_model(draw(_numbered(tokens)), merges), draw(added_tokens), pre_tokenizer=SPACES)


@st.composite
def byte_level_texts(draw):
    tokens, merges = draw(_merges([*LETTERS, "Ġ"]))
    whole = [*BYTES, *(text for text in tokens if text not in BYTES)]
    return byte_level(bpe_model(whole, merges), draw(added_tokens))


@st.composite
def unigram_texts(draw):
    more = draw(st.lists(st.text(LETTERS + "▁", min_size=2, max_size=6), max_size=8, unique=True))
    score = st.floats(-15, 0, allow_nan=False)
    pieces = [("<unk>", 0.0), *((text, draw(score)) for text in (*LETTERS, "▁", *more))]
    return tokenizer_json(unigram_model(pieces), draw(added_tokens), pre_tokenizer=SPACES)


@st.composite
def wordpiece_texts(draw):
    more = draw(st.lists(_word, max_size=6, unique=True))
    tokens = ["[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *more, *(f"##{text}" for text in more[::2])]
    return tokenizer_json(wordpiece_model(tokens), draw(added_tokens), pre_tokenizer=WORDS)


@st.composite
def wordlevel_texts(draw):
    more = draw(st.lists(_word, max_size=8, unique=True))
    return tokenizer_json(wordlevel_model(["[UNK]", *LETTERS, *more]), draw(added_tokens), pre_tokenizer=WORDS)


EXACT = {"BPE": bpe_texts(), "byte-level BPE": byte_level_texts(), "Unigram": unigram_texts()}
"""Kinds whose way to cut text does not depend on entries that are added to the vocabulary."""
KINDS = EXACT | {"WordPiece": wordpiece_texts(), "WordLevel": wordlevel_texts()}
any_text = st.one_of(*KINDS.values())
