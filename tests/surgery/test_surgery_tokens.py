"""What tokens stand for, however they are spelled."""

import json

import pytest
from hypothesis import given, reject, settings
from tiny_tokenizers import (
    BYTES,
    SPECIAL,
    any_text,
    bpe_model,
    byte_level,
    checkpoint_of,
    table_of,
    tokenizer_json,
    unigram_model,
    wordlevel_model,
    wordpiece_model,
)

from mergekit.errors import CheckpointError
from mergekit.surgery.matching import Matcher, Origin
from mergekit.surgery.spelling import Key, reader_of
from mergekit.surgery.subword import Splitter, without
from mergekit.surgery.tokens import Tokens, read_tokens


def text(value):
    return Key("text", value)


REPLACED = {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
}
SPELLINGS = {
    "byte-level": (
        byte_level(bpe_model(BYTES, [])),
        {"Ġthe": " the", "Ċ": "\n", "Ã©": "é", "a▁": "a▁", "<0x41>": "<0x41>"},
    ),
    "metaspace": (
        tokenizer_json(unigram_model([("a", 0.0)]), pre_tokenizer={"type": "Metaspace", "replacement": "▁"}),
        {"▁the": " the", "the": "the", "a▁b": "a b", "Ġa": "Ġa"},
    ),
    "another mark": (
        tokenizer_json(unigram_model([("a", 0.0)]), decoder={"type": "Metaspace", "replacement": "_"}),
        {"_the": " the", "▁the": "▁the"},
    ),
    "replaced spaces": (tokenizer_json(bpe_model(["a"], []), **REPLACED), {"▁the": " the", "▁▁": "  "}),
    "pieces": (tokenizer_json(wordpiece_model(["a"])), {"the": " the", "##ing": "ing", "#": " #"}),
    "words": (tokenizer_json(wordlevel_model(["the"])), {"the": "the"}),
    "endings": (byte_level(bpe_model(BYTES, [], end_of_word_suffix="</w>")), {"the</w>": "the ", "the": "the"}),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_spelling_is_read_off_the_steps_of_the_tokenizer(kind):
    whole, expected = SPELLINGS[kind]
    read = reader_of(table_of(whole))
    assert {token: read(token) for token in expected} == {token: text(value) for token, value in expected.items()}


def test_bytes_that_are_no_text_are_bytes_in_every_spelling():
    level, piece = (reader_of(table_of(SPELLINGS[kind][0])) for kind in ("byte-level", "metaspace"))
    assert level("â") == piece("<0xE2>") == Key("bytes", "\xe2")
    assert level("âĤ") == Key("bytes", "\xe2\x82")
    assert level("âĤ¬") == text("€")
    assert piece("<0x41>") == Key("bytes", "A") != level("A")


def test_added_tokens_are_text_and_special_ones_have_roles(tmp_path):
    whole = byte_level(bpe_model(BYTES, []), [("Ġx", SPECIAL), ("<s>", SPECIAL)])
    roles = {"special_tokens_map.json": json.dumps({"bos_token": {"content": "<s>"}, "pad_token": "nothing"})}
    roles["tokenizer_config.json"] = json.dumps({"eos_token": "<s>", "unk_token": None})
    tokens = read_tokens(checkpoint_of(tmp_path, {"tokenizer.json": whole, **roles}))
    assert tokens.roles == {"bos_token": "<s>", "eos_token": "<s>"}
    assert tokens.keys[257] == (Key("role", "bos_token"), Key("role", "eos_token"), text("<s>"))
    assert tokens.keys[256] == (text("Ġx"),)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "tokenizer_config.json"])
def test_broken_settings_are_told(tmp_path, name):
    whole = byte_level(bpe_model(BYTES, []))
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_tokens(checkpoint_of(tmp_path, {"tokenizer.json": whole, name: "{"}))
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        read_tokens(checkpoint_of(tmp_path / "empty"))


def parsed(whole):
    """The tokens, unless two of them got the same id by chance."""
    try:
        return Tokens(table_of(whole), {})
    except CheckpointError:
        reject()


@settings(max_examples=60)
@given(any_text, any_text)
def test_every_token_has_exactly_one_origin_and_exact_rows_stand_for_the_same(one, other):
    donor, model = parsed(one), parsed(other)
    donor_rows, model_rows = max(1, donor.table.size - 2), max(1, model.table.size - 1)
    matches = Matcher(
        donor=donor, model=model, donor_rows=donor_rows, model_rows=model_rows, prefixes=True, twins=True
    ).match()
    assert sum(matches.counts.values()) == donor.table.size == matches.rows.size
    assert (matches.rows < model_rows).all()
    for number, keys in donor.keys.items():
        origin, row = matches.origins[number], matches.rows[number]
        assert (row >= 0) == (origin < Origin.APPROXIMATED)
        if origin == Origin.EXACT:
            assert set(keys) & set(model.keys[row])
        elif origin == Origin.PREFIX:
            (own,) = keys
            assert any(own.text.startswith(key.text) and len(key.text) < len(own.text) for key in model.keys[row])
        elif origin == Origin.ZERO:
            assert number >= donor_rows
    assert not set(donor.table.ids.values()) & set(matches.ids(Origin.NO_TOKEN).tolist())


@settings(max_examples=30)
@given(any_text)
def test_pieces_of_a_models_own_tokens_are_these_tokens_wherever_its_tokenizer_says_so(whole):
    tokens = parsed(whole)
    split = Splitter(tokens, tokens)
    for number in tokens.texts:
        assert all(0 <= piece < tokens.table.size for piece in split(number))


@pytest.mark.parametrize("prepended", [True, False])
def test_nothing_is_put_before_a_text_that_is_cut(prepended):
    pieces = [("<unk>", 0.0), *((letter, -9.0) for letter in "▁theing"), ("▁the", -1.0), ("ing", -1.0)]
    cut = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always" if prepended else "never", "split": True}
    model = Tokens(table_of(tokenizer_json(unigram_model(pieces), pre_tokenizer=cut)), {})
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    normal = {"type": "Sequence", "normalizers": steps}
    spelled = bpe_model(["<unk>", *"▁theing", "in", "ing"], [("i", "n"), ("in", "g")], unk_token="<unk>")
    other = Tokens(table_of(tokenizer_json(spelled, normalizer=normal)), {})
    donor = Tokens(table_of(byte_level(bpe_model([*BYTES, "ing", "Ġthe"], []))), {})
    wanted = [donor.table.ids[token] for token in ("ing", "Ġthe")]
    assert [Splitter(donor, model)(number) for number in wanted] == [
        (model.table.ids["ing"],),
        (model.table.ids["▁the"],),
    ]
    assert Splitter(donor, other)(wanted[0]) == (other.table.ids["ing"],)


def test_tokens_that_are_hidden_are_cut_into_smaller_ones():
    pieces = [("<unk>", 0.0), *((letter, -9.0) for letter in "abc"), ("ab", -1.0), ("abc", -1.0)]
    unigram = tokenizer_json(unigram_model(pieces))
    bpe = tokenizer_json(bpe_model(["a", "b", "c", "ab", "abc"], [("a", "b"), ("ab", "c")]))
    for whole in (unigram, bpe):
        tokens = Tokens(table_of(whole), {})
        ids = tokens.table.ids
        assert Splitter(tokens, tokens)(ids["abc"]) == (ids["abc"],)
        assert Splitter(tokens, tokens, frozenset({"abc"}))(ids["abc"]) == (ids["ab"], ids["c"])
        assert without(tokens.table, []) is tokens.table
