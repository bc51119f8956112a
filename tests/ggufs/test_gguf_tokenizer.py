"""Tokenizers that are rebuilt from the vocabulary in a GGUF file."""

import json
import struct
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
import transformers
from gguf_files import write_gguf
from tiny_checkpoints import merge, recipe
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mergekit.checkpoint import open_checkpoint
from mergekit.checkpoint.gguf import read_container
from mergekit.checkpoint.gguf.vocabulary import splits
from mergekit.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
TEXTS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? It's 12345 o'clock!",
    "  two  spaces\n\n\tand tabs\r\n  int main(void) { return 0x7F; }  ",
    "Größenwahn in Zürich, naïve café: e\u0301 and é; 東京 2024 🙂 ½",
    '<|im_start|>user\nI\'LL say "no"<|im_end|>\n',
    "",
]
CORPUS = TEXTS * 3 + ["the fox and the dog and the clock say no", "return the quick brown int 123 456 789"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def trained(cut, normalizer=None):
    """A byte-level BPE tokenizer over a small text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, cut, decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def vocabulary_of(tokenizer, cut, **more):
    """The settings of a GGUF file about a tokenizer."""
    stored = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(stored["vocab"], key=stored["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["merges"]]
    types = [CONTROL if token in SPECIAL else NORMAL for token in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }


@pytest.fixture
def rebuilt(originals, tmp_path):
    """Write a GGUF file with a vocabulary, and load the tokenizer that is made of it."""

    def make(settings):
        file = write_gguf(tmp_path / "model.gguf", "llama", originals("llama"), metadata=settings)
        merge(recipe("passthrough", [file]), tmp_path / "out")
        return transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)

    return make


def assert_same(found, reference):
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False)
        ids = ids if isinstance(ids, list) else ids.ids
        assert found.encode(text, add_special_tokens=False) == ids
        assert found.decode(ids, skip_special_tokens=False) == reference.decode(ids, skip_special_tokens=False)


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])


@pytest.mark.parametrize(("cut", "reference"), [("gpt-2", GPT2), ("smollm", DIGITS)])
def test_byte_pairs_are_cut_as_the_original_cuts(cut, reference, rebuilt):
    original = trained(reference)
    assert_same(rebuilt(vocabulary_of(original, cut)), original)


def test_qwen2_is_the_tokenizer_of_transformers(rebuilt, tmp_path):
    original = trained(GPT2, normalizers.NFC())
    stored = json.loads(original.to_str())["model"]
    folder = tmp_path / "qwen2"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(stored["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, stored["merges"])))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    reference = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert_same(rebuilt(vocabulary_of(original, "qwen2")), reference)


def words(cut, text):
    """How a tokenizer of this version cuts a text."""
    return [
        word
        for word, _ in pre_tokenizers.Split(tokenizers.Regex(splits()[cut].pattern), "isolated").pre_tokenize_str(text)
    ]


@pytest.mark.parametrize(
    ("cut", "text", "expected"),
    [
        ("llama-bpe", "It's 12345 HELLO'LL\n\n x", ["It", "'s", " ", "123", "45", " HELLO", "'LL", "\n\n", " x"]),
        ("qwen2", "a 12 b!?\n", ["a", " ", "1", "2", " b", "!?\n"]),
        ("tekken", "camelCase 12 HELLOworld", ["camel", "Case", " ", "1", "2", " HELLOworld"]),
        ("gpt-4o", "camelCase's 1234 path/\n", ["camel", "Case's", " ", "123", "4", " path", "/\n"]),
        ("dbrx", "don't   stop", ["don", "'t", "  ", " stop"]),
    ],
)
def test_patterns_cut_as_published(cut, text, expected):
    assert words(cut, text) == expected


def test_the_files_beside_the_tokenizer(rebuilt):
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    more = {"tokenizer.chat_template": template, "tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.add_bos_token": True}
    found = rebuilt(vocabulary_of(trained(GPT2), "gpt-2", **more))
    assert (found.bos_token, found.eos_token, found.pad_token) == ("<|im_start|>", "<|im_end|>", None)
    assert found.model_max_length == 128
    assert found.apply_chat_template([{"content": "hi"}], tokenize=False) == "<|im_start|>hi<|im_end|>"
    assert found("the")["input_ids"][0] == 1
    assert found("the", "fox")["input_ids"].count(1) == 2


def test_answers_end_with_either_end(originals, tmp_path):
    settings = vocabulary_of(trained(GPT2), "gpt-2", **{"tokenizer.ggml.eot_token_id": 0})
    file = write_gguf(tmp_path / "model.gguf", "llama", originals("llama"), metadata=settings)
    assert json.loads(open_checkpoint(file).text("generation_config.json")) == {
        "bos_token_id": 1,
        "eos_token_id": [0, 2],
    }


def test_fillers_of_the_embedding_are_no_tokens(rebuilt):
    settings = vocabulary_of(trained(GPT2), "gpt-2")
    count = len(settings["tokenizer.ggml.tokens"])
    settings["tokenizer.ggml.tokens"] += ["[PAD400]", "<special>"]
    settings["tokenizer.ggml.token_type"] += [UNUSED, DEFINED]
    found = rebuilt(settings)
    assert found.get_vocab().keys() & {"[PAD400]", "<special>"} == {"<special>"}
    assert found.encode("the<special>", add_special_tokens=False)[-1] == count + 1


def pieces():
    """SentencePiece's pieces of a small text, with scores."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
    tokenizer.train_from_iterator([text for text in CORPUS if text.isascii()], trainer)
    stored = json.loads(tokenizer.to_str())["model"]
    tokens = [
        token for token in sorted(stored["vocab"], key=stored["vocab"].get) if "<" not in token and "\n" not in token
    ]
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merged = [token for token in tokens if len(token) > 1]
    scores = {token: -float(rank) for rank, token in enumerate(merged)}
    every = [*head, *tokens]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": every,
        "tokenizer.ggml.scores": [scores.get(token, -1e6 if token not in head else 0.0) for token in every],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(tokens)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def sentencepiece(settings, text, space=True):
    """The two neighbours whose union has the greatest score become one, until none has a score; bytes for the rest."""
    tokens, scores = settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.scores"]
    known = dict(zip(tokens, scores, strict=True))
    parts = list(("▁" if space and text else "") + text.replace(" ", "▁"))
    while True:
        pairs = [(-known[a + b], place) for place, (a, b) in enumerate(pairwise(parts)) if a + b in known]
        if not pairs:
            break
        place = min(pairs)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    ids = {token: number for number, token in enumerate(tokens)}
    bytes_of = ([part] if part in ids else [f"<0x{byte:02X}>" for byte in part.encode()] for part in parts)
    return [ids[piece] for group in bytes_of for piece in group]


@pytest.mark.parametrize("space", [True, False])
def test_pieces_are_merged_by_their_scores(space, rebuilt):
    settings = {**pieces(), "tokenizer.ggml.add_space_prefix": space}
    found = rebuilt(settings)
    for text in [*TEXTS[:3], "the dog says", "returning"]:
        assert found.encode(text, add_special_tokens=False) == sentencepiece(settings, text, space)
        assert found.decode(found.encode(text, add_special_tokens=False)) == text
    assert found.encode("the")[0] == 1


def test_a_vocabulary_that_is_not_known_leaves_a_remark(originals, tmp_path):
    for settings, remark in (
        ({}, "the file has no tokenizer"),
        ({**pieces(), "tokenizer.ggml.model": "t5"}, "cannot rebuild one of the kind `t5`"),
        (vocabulary_of(trained(GPT2), "chameleon"), "how `chameleon` cuts text is not known"),
    ):
        file = write_gguf(tmp_path / "model.gguf", "llama", originals("llama"), metadata=settings)
        checkpoint = open_checkpoint(file)
        assert remark in checkpoint.remarks[0]
        assert list(checkpoint.texts) == ["config.json"]


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("tokens", [1, 2, 3], "not a list of strings"),
        ("tokens", ["a", "b", "a"], "`tokenizer.ggml.token_type` has 259"),
        ("merges", ["a b c"], "'a b c' is not a merge"),
        ("token_type", [1, 1], "has 2 entries"),
    ],
)
def test_vocabularies_that_contradict_themselves(key, value, what, originals, tmp_path):
    settings = vocabulary_of(trained(GPT2), "gpt-2")
    what = what.replace("259", str(len(settings["tokenizer.ggml.tokens"])))
    file = write_gguf(
        tmp_path / "model.gguf", "llama", originals("llama"), metadata={**settings, f"tokenizer.ggml.{key}": value}
    )
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file)
    assert what in caught.value.problem.what


def test_the_shortest_number_stands_for_a_float(originals, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", "llama", originals("llama"), metadata={"tiny": 1e-5, "third": 1 / 3})
    found = read_container(file).metadata
    assert found["llama.tiny"] == 1e-5
    assert struct.pack("<f", found["llama.third"]) == np.float32(1 / 3).tobytes()
