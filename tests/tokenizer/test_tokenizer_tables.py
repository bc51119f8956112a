"""Reading tables of tokens: ids as the library gives them, shared files, hostile files, slow tokenizers."""

import json
import re

import pytest
from tiny_tokenizers import (
    BYTES,
    PLAIN,
    SPACES,
    SPECIAL,
    bpe_model,
    byte_level,
    checkpoint_of,
    table_of,
    tokenizer_json,
    unigram_model,
    wordlevel_model,
    wordpiece_model,
)
from tokenizers import Tokenizer

from mergekit.checkpoint import Checkpoint
from mergekit.errors import CheckpointError, UnsupportedError
from mergekit.tokenizer.tables import read_table, read_tables

AB = bpe_model(["a", "b", "ab"], [("a", "b")])


def test_ids_are_ascending_with_added_tokens_and_their_flags():
    table = table_of(tokenizer_json(AB, [("<x>", SPECIAL), ("b", PLAIN)]))
    assert list(table.ids.items()) == [("a", 0), ("b", 1), ("ab", 2), ("<x>", 3)]
    assert table.added == {"<x>": SPECIAL, "b": PLAIN}
    assert (table.kind, table.size, table.holes, table.renumbered) == ("BPE", 4, (), {})


def test_holes_are_ids_without_a_token():
    table = table_of(tokenizer_json(bpe_model({"b": 5, "a": 1, "c": 2}, [])))
    assert (list(table.ids), table.size, table.holes) == (["a", "c", "b"], 6, (0, 3, 4))


def test_the_library_numbers_added_tokens_whatever_the_file_says():
    text = tokenizer_json(AB, [("<x>", SPECIAL), ("<y>", PLAIN), ("b", PLAIN)], ids=[7, 4, 5])
    table = table_of(text)
    assert table.ids == {"a": 0, "b": 1, "ab": 2, "<x>": 3, "<y>": 4} == Tokenizer.from_str(text).get_vocab()
    assert table.renumbered == {"<x>": 7, "b": 5}


@pytest.mark.parametrize(("ids", "own"), [((5, 6), 6), ((5, 2), 2), ((5, 9), 2)])
def test_where_versions_of_the_library_differ_the_file_decides(ids, own):
    """An added token behind one that stands above a hole: 2 since version 0.23, 6 before."""
    table = table_of(tokenizer_json(bpe_model({"a": 0, "b": 5}, []), [("b", PLAIN), ("<x>", PLAIN)], ids=ids))
    assert table.ids == {"a": 0, "b": 5, "<x>": own}


def test_repeated_and_empty_added_tokens_count_as_in_the_library():
    text = tokenizer_json(AB, [("<x>", SPECIAL), ("", PLAIN), ("<x>", PLAIN), ("<y>", PLAIN)])
    table = table_of(text)
    assert table.ids == Tokenizer.from_str(text).get_vocab()
    assert table.added == {"<x>": SPECIAL, "<y>": PLAIN}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (AB, "BPE"),
        (unigram_model([("<unk>", 0), ("a", -1.5)]), "Unigram"),
        (wordpiece_model(["[UNK]", "a"]), "WordPiece"),
        (wordlevel_model(["[UNK]", "a"]), "WordLevel"),
    ],
)
def test_kinds_are_known_with_and_without_a_name(model, kind):
    assert table_of(tokenizer_json(model)).kind == kind
    text = tokenizer_json({key: value for key, value in model.items() if key != "type"})
    assert table_of(text).kind == kind
    Tokenizer.from_str(text)


def test_of_equal_pieces_the_last_has_the_token():
    text = tokenizer_json(unigram_model([("<unk>", 0), ("a", -1), ("b", -1), ("a", -2)]))
    table = table_of(text)
    assert table.ids == {"<unk>": 0, "b": 2, "a": 3}
    assert table.holes == (1,)
    assert Tokenizer.from_str(text).token_to_id("a") == 3


HOSTILE = {
    "not valid JSON": "{",
    "not valid JSON: maximum recursion": "[" * 200_000,
    "not a JSON object": "[]",
    "`model` is not an object": '{"model": 3}',
    "unknown `model.type` 'Magic'": '{"model": {"type": "Magic", "vocab": {}}}',
    "unknown `model.type` ['BPE']": '{"model": {"type": ["BPE"], "vocab": {}}}',
    "`model.vocab` is not an object": '{"model": {"type": "BPE"}}',
    "`model.vocab` is not a list of scored tokens": '{"model": {"type": "Unigram", "vocab": {"a": 0}}}',
    "`model.vocab` is not a list": '{"model": {"type": "Unigram", "vocab": [["a", NaN]]}}',
    "id of token 'a' is -1": tokenizer_json(bpe_model({"a": -1}, [])),
    "id of token 'a' is 4194304": tokenizer_json(bpe_model({"a": 2**22}, [])),
    "id of token 'a' is 1.0": tokenizer_json(bpe_model({"a": 1.0}, [])),
    "id of token 'a' is True": tokenizer_json(bpe_model({"a": True}, [])),
    "id of token 'a' is None": '{"model": {"vocab": {"a": null}}}',
    "tokens 'a' and 'b' have the same id 1": tokenizer_json(bpe_model({"a": 1, "b": 1}, [])),
    "tokens 'b' and '<x>' have the same id 1": tokenizer_json(bpe_model({"b": 1}, []), [("<x>", PLAIN)]),
    "`added_tokens` is not a list": tokenizer_json(AB).replace('"added_tokens": []', '"added_tokens": {"a": 1}'),
    "`added_tokens` has no `content`": tokenizer_json(AB).replace('"added_tokens": []', '"added_tokens": [{"id": 1}]'),
    "id of token '<x>' is -3": tokenizer_json(AB, [("<x>", PLAIN)], ids=[-3]),
    "flag of the added token '<x>'": tokenizer_json(AB, [("<x>", PLAIN | {"special": "yes"})]),
    "half of a surrogate pair": json.dumps({"model": {"vocab": {"\ud800": 0}}}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_with_their_name(tmp_path, what):
    model = checkpoint_of(tmp_path, {"tokenizer.json": HOSTILE[what]})
    with pytest.raises(CheckpointError, match=re.escape(what.partition(": maximum")[0])) as caught:
        read_table(model)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not UTF-8: invalid start byte at byte 2"):
        read_table(checkpoint_of(tmp_path, {"tokenizer.json": b'{"\xff": 1}'}))


def test_equal_files_give_the_same_table(tmp_path):
    one, other = tokenizer_json(AB), tokenizer_json(AB, [("<x>", SPECIAL)])
    models = [
        checkpoint_of(tmp_path / "a", {"tokenizer.json": one}),
        checkpoint_of(tmp_path / "b", {"tokenizer.json": other}),
        checkpoint_of(tmp_path / "c"),
        checkpoint_of(tmp_path / "d", texts={"tokenizer.json": one}),  # as GGUF files have it
    ]
    first, second, third, fourth = read_tables(models)
    assert first is fourth is not second
    assert third is None
    assert second.ids == {"a": 0, "b": 1, "ab": 2, "<x>": 3}


def test_models_without_a_tokenizer_have_no_table(tmp_path):
    assert read_table(Checkpoint(tmp_path / "nowhere.gguf", {}, {}, (), ())) is None
    assert read_table(checkpoint_of(tmp_path, {"tokenizer_config.json": "{}", "config.json": "{}"})) is None


@pytest.fixture
def slow(tmp_path):
    """A model with the files of a slow GPT-2 tokenizer."""
    vocab = {text: number for number, text in enumerate([*BYTES, "ab", "<|endoftext|>"])}
    files = {
        "vocab.json": json.dumps(vocab),
        "merges.txt": "#version: 0.2\na b\n",
        "config.json": json.dumps({"model_type": "gpt2"}),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer"}),
    }
    return checkpoint_of(tmp_path, files)


def test_slow_tokenizers_are_converted(slow):
    table = read_table(slow)
    assert table.kind == "BPE"
    assert table.ids["ab"] == 256
    assert table.added["<|endoftext|>"]["special"] is True
    assert Tokenizer.from_str(json.dumps(table.content)).encode("ab").ids == [256]


def test_slow_tokenizers_that_cannot_be_converted_are_refused(slow):
    (slow.root / "vocab.json").write_text("nonsense")
    with pytest.raises(CheckpointError, match="cannot convert its tokenizer") as caught:
        read_table(slow)
    assert str(slow.root) in str(caught.value)
    assert "save_pretrained" in str(caught.value)


@pytest.mark.parametrize("kind", ["gpt2", "evil"])
def test_no_code_of_a_model_is_run(slow, kind):
    (slow.root / "evil.py").write_text("raise SystemExit('code of the model was run')\n")
    (slow.root / "config.json").write_text(json.dumps({"model_type": kind}))
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (slow.root / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="cannot convert its tokenizer"):
        read_table(slow)


def test_without_transformers_slow_tokenizers_are_refused_with_a_remedy(slow, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UnsupportedError, match=r"pip install .*sentencepiece"):
        read_table(slow)


def test_byte_level_alphabet_is_whole():
    """The tests' own byte-level tokenizers spell any text."""
    tokenizer = Tokenizer.from_str(byte_level(bpe_model(BYTES, [])))
    text = "\x00 añ 日本 👍\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert SPACES["type"] == "Metaspace"
