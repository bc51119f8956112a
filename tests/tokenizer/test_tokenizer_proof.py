"""The proof finds what is wrong with a tokenizer.json, and nothing else."""

import json

import pytest
from tiny_tokenizers import BYTES, PLAIN, SPECIAL, bpe_model, byte_level, table_of, tokenizer_json, wordpiece_model

from mergekit.tokenizer.choice import unite, with_tokens, within
from mergekit.tokenizer.files import table_text
from mergekit.tokenizer.proof import prove

TEXT = byte_level(bpe_model([*BYTES, "ab"], [("a", "b")]), [("<s>", SPECIAL), ("<t>", PLAIN)])
TABLE = table_of(TEXT)


def test_a_right_file_is_proven():
    assert prove(TABLE, TEXT) == []
    assert prove(TABLE, TEXT, 259, TEXT) == []
    after = with_tokens(TABLE, ["<n>"]).table
    assert prove(after, table_text(after), 300, TABLE) == []


def test_a_file_that_does_not_load():
    (complaint,) = prove(TABLE, "{}")
    assert complaint.startswith("`tokenizers` cannot load it: ")


def test_other_ids():
    other = byte_level(bpe_model([*BYTES, "ba"], [("b", "a")]), [("<t>", PLAIN), ("<s>", SPECIAL)])
    assert prove(TABLE, other) == [
        "token '<s>' has the id 258, not 257",
        "token '<t>' has the id 257, not 258",
        "token 'ab' has the id None, not 256",
        "token 'ba' has the id 256, not None",
        "special token '<s>' is cut into [258], not [257]",
    ]


def test_ids_without_rows():
    assert prove(TABLE, TEXT, 258) == ["token '<t>' has the id 258, but there are 258 rows"]


def test_long_lists_of_complaints_are_cut():
    found = prove(TABLE, TEXT, 100)
    assert len(found) == 21
    assert found[-1] == "and 139 more of this kind"


def test_special_tokens_that_are_not_one_token():
    content = json.loads(TEXT)
    content["added_tokens"][1] |= {"content": "<", "special": False}
    content["added_tokens"][0] |= {"normalized": True}
    text = json.dumps(content)
    (complaint,) = prove(table_of(text), text)
    assert complaint == f"special token '<s>' is cut into {[BYTES.index(letter) for letter in '<s>']}, not [257]"


def test_samples_that_are_decoded_to_something_else():
    kept = within(TABLE, 100).table
    found = prove(kept, table_text(kept), None, TABLE)
    assert len(found) == 9
    assert all(complaint.startswith("a sample is decoded to") for complaint in found)


@pytest.mark.parametrize("normalizer", [None, {"type": "Lowercase"}])
def test_what_was_lossy_before_may_stay_so(normalizer):
    tokens = ["[UNK]", *map(chr, range(33, 127)), *("##" + chr(code) for code in range(33, 127))]
    base = table_of(
        tokenizer_json(wordpiece_model(tokens), pre_tokenizer={"type": "Whitespace"}, normalizer=normalizer)
    )
    other = table_of(tokenizer_json(wordpiece_model(["[UNK]", "été", "quick", "##uick"]), [("<n>", SPECIAL)]))
    union = unite(base, [other]).table
    assert prove(union, table_text(union), None, base) == []


def test_truncation_and_padding_do_not_matter():
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 5},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    text = json.dumps(json.loads(TEXT) | {"truncation": truncation, "padding": padding})
    assert prove(table_of(text), text, None, text) == []
