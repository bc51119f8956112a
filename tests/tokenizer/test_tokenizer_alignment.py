"""How vocabularies lie to each other."""

import json

from tiny_tokenizers import PLAIN, SPECIAL, bpe_model, table_of, tokenizer_json

from mergekit.tokenizer.alignment import Moved, align

FIRST = table_of(tokenizer_json(bpe_model(["a", "b", "c", "d"], []), [("<s>", SPECIAL), ("<t>", SPECIAL)]))
OTHER = table_of(
    tokenizer_json(bpe_model({"a": 0, "c": 1, "b": 3, "e": 9}, []), [("a", SPECIAL), ("<t>", PLAIN)], ids=[0, 4])
)


def test_every_kind_of_token_is_found():
    own, other = align([FIRST, OTHER], [8, 9])
    assert other.moved == (Moved("c", 1, 2), Moved("b", 3, 1), Moved("<t>", 4, 5))
    assert (other.tokens, other.size, other.shared, other.equal) == (5, 10, 1, False)
    assert (other.added, other.absent) == (("e",), ("d", "<s>"))
    assert (other.holes, other.beyond, other.padding) == ((2, 5, 6, 7, 8), ("e",), 0)
    assert other.unlike == ("a", "<t>")
    assert (own.shared, own.moved, own.added, own.absent, own.unlike, own.padding) == (6, (), (), (), (), 2)
    assert own.equal


def test_equal_vocabularies_of_different_files_are_equal():
    again = table_of(json.dumps(FIRST.content, indent=1))
    assert again is not FIRST
    assert align([FIRST, again], [None, None])[1].equal


def test_without_heights_nothing_is_said_of_rows():
    _, other = align([FIRST, OTHER], [None, None])
    assert (other.rows, other.padding, other.beyond) == (None, None, ())


def test_as_json_counts_all_and_shows_the_first():
    _, other = align([FIRST, OTHER], [8, 9])
    record = other.as_json(2)
    assert json.loads(json.dumps(record)) == record
    assert record["moved"] == {
        "count": 3,
        "first": [{"token": "c", "id": 1, "first": 2}, {"token": "b", "id": 3, "first": 1}],
    }
    assert record["holes"] == {"count": 5, "first": [2, 5]}
    assert record["padding"] == 0
    assert len(other.as_json(None)["holes"]["first"]) == 5


def test_tokens_that_loaders_number_anew_are_listed():
    text = tokenizer_json(bpe_model(["a"], []), [("<x>", PLAIN)], ids=[9])
    (own,) = align([table_of(text)], [None])
    assert own.renumbered == ("<x>",)
