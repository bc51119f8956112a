"""Models whose embeddings are images of one hidden vector per word, so that one can be learned from the other."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny_checkpoints import llama_config, llama_shapes, random_tensors, read_model, write_model
from tiny_tokenizers import BYTES, SPACES, SPECIAL, bpe_model, byte_level, tokenizer_json, unigram_model

from mergekit.merging import JobOptions
from mergekit.plan import PlanOptions
from mergekit.surgery import Settings, transplant

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WORDS = [a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]  # 150, none begins another
OF_MODEL, OF_DONOR = WORDS[:120], WORDS[30:]
SHARED = WORDS[30:120]
HIDDEN = 12


def words_bpe(words, specials=(), mark="Ġ"):
    """A byte-level tokenizer in which every word behind a space is one token."""
    tokens, merges = list(BYTES), []
    for word in words:
        whole = mark
        for letter in word:
            if whole + letter not in tokens:
                tokens.append(whole + letter)
            if (whole, letter) not in merges:
                merges.append((whole, letter))
            whole += letter
    return byte_level(bpe_model(tokens, merges), [(text, SPECIAL) for text in specials])


def words_unigram(words, specials=()):
    """A sentencepiece-like tokenizer with bytes."""
    letters = [*"abcdefghijklmnopqrstuvwxyz▁", *"ABC"]
    pieces = [("<unk>", 0.0), *((f"<0x{n:02X}>", -20.0) for n in range(256)), *((letter, -10.0) for letter in letters)]
    pieces += [(f"▁{word}", -5.0) for word in words]
    model = unigram_model(pieces, byte_fallback=True)
    return tokenizer_json(model, [("<unk>", SPECIAL), *((text, SPECIAL) for text in specials)], pre_tokenizer=SPACES)


def table_ids(text):
    from mergekit.tokenizer import parse_table

    return dict(parse_table(text, "tokenizer.json").ids)


def meaning(token, width, seed, noise=0.0):
    """A row that is a linear image of what the token means."""
    plain = token.replace("Ġ", " ").replace("▁", " ")
    hidden = np.random.default_rng([ord(c) for c in plain]).normal(size=HIDDEN)
    image = np.random.default_rng(seed).normal(size=(HIDDEN, width))
    own = np.random.default_rng([seed, *(ord(c) for c in plain)]).normal(size=width)
    return 0.05 * (hidden @ image + noise * own)


def matrix(ids, rows, width, seed, noise=0.05):
    out = np.random.default_rng(seed + 1).normal(size=(rows, width)) * 0.05
    for text, number in ids.items():
        if number < rows:
            out[number] = meaning(text, width, seed, noise)
    return torch.tensor(out, dtype=torch.float32)


@dataclass
class Made:
    """A model on the disk."""

    root: Path
    ids: dict
    tensors: dict

    def rows(self, name=EMBEDDING):
        return self.tensors[name]


def make_model(root, tokenizer, width, seed, tied=False, dtype=torch.float32, rows=None, roles=None, **config):
    ids = table_ids(tokenizer)
    rows = rows or max(ids.values()) + 1
    made = llama_config(layers=1, width=width, inner=16, rows=rows, tied=tied, dtype=dtype, **config)
    tensors = random_tensors(llama_shapes(made), seed, dtype)
    tensors[EMBEDDING] = matrix(ids, rows, width, seed).to(dtype)
    if not tied:
        tensors[HEAD] = matrix(ids, rows, width, seed + 50).to(dtype)
    write_model(root, tensors, made)
    (root / "tokenizer.json").write_text(tokenizer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **(roles or {})}
    (root / "tokenizer_config.json").write_text(json.dumps(settings))
    return Made(root, ids, tensors)


@dataclass
class Pair:
    """A model and a donor."""

    root: Path
    model: Made
    donor: Made

    def operate(self, name="out", *, options=None, job=None, **settings):
        """Carry out a transplant; the report and the tensors."""
        out = self.root / name
        report = transplant(
            str(self.model.root),
            str(self.donor.root),
            out,
            settings=Settings(**settings),
            options=job or JobOptions(plan=options or PlanOptions(workers=1)),
        )
        return report, read_model(out)

    @property
    def shared(self):
        """Pairs of ids of equal tokens, by the donor's ids."""
        same = [(number, self.model.ids[text]) for text, number in self.donor.ids.items() if text in self.model.ids]
        return sorted(same)

    @property
    def new(self):
        return sorted(number for text, number in self.donor.ids.items() if text not in self.model.ids)


def make_pair(
    root,
    width=24,
    donor_width=16,
    tied=False,
    donor_tied=False,
    dtype=torch.float32,
    donor_rows=None,
    model=None,
    donor=None,
    roles=None,
    **config,
):
    """Both with byte-level tokenizers, which have different words."""
    made = make_model(root / "model", model or words_bpe(OF_MODEL), width, 1, tied, dtype, **{"roles": roles, **config})
    giver = make_model(root / "donor", donor or words_bpe(OF_DONOR), donor_width, 2, donor_tied, dtype, donor_rows)
    return Pair(root, made, giver)
