"""What a union, a cut and new tokens are, case by case."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_tokenizers import (
    BYTES,
    LETTERS,
    PLAIN,
    SPACES,
    SPECIAL,
    WORDS,
    bpe_model,
    byte_level,
    table_of,
    tokenizer_json,
    unigram_model,
    wordlevel_model,
    wordpiece_model,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from mergekit.errors import CheckpointError, UnsupportedError
from mergekit.tokenizer.choice import unite, with_tokens, within
from mergekit.tokenizer.files import table_text
from mergekit.tokenizer.proof import SAMPLES, prove


def cut(table, text, special=False):
    return Tokenizer.from_str(table_text(table)).encode(text, add_special_tokens=special).ids


def bytes_table(words=(), added=(), **more):
    """Byte-level BPE whose merges spell these words letter by letter."""
    tokens, merges = list(BYTES), []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    return table_of(byte_level(bpe_model(tokens, merges, **more), added))


class TestUnite:
    def test_words_of_others_do_not_match_inside_words_of_the_base(self):
        """As an added token, "hello" would be cut out of "Othello"."""
        base, other = bytes_table(["the"]), bytes_table(["hello"])
        union = unite(base, [other]).table
        assert "hello" in union.ids
        assert "hello" not in union.added
        for text in ("Othello", "hello", "the hello"):
            assert cut(union, text) == cut(base, text)

    def test_the_first_model_that_has_a_token_decides_its_place(self):
        tables = [bytes_table(), bytes_table(["xy"], [("<b>", SPECIAL)]), bytes_table(["zw"], [("<c>", SPECIAL)])]
        assert list(unite(tables[0], tables[1:]).table.ids)[256:] == ["xy", "<b>", "zw", "<c>"]
        assert list(unite(tables[0], tables[:0:-1]).table.ids)[256:] == ["zw", "<c>", "xy", "<b>"]
        assert list(unite(tables[2], tables[:2]).table.ids)[256:] == ["zw", "<c>", "xy", "<b>"]

    def test_nothing_new_is_no_change(self):
        base = bytes_table(["the"], [("<s>", SPECIAL)])
        choice = unite(base, [bytes_table(["the"]), base], ["<s>", "th"])
        assert choice.table is base
        assert (choice.changed, choice.remarks, choice.removed) == (False, (), ())

    def test_an_added_token_of_any_model_is_one_with_the_flags_of_the_first(self):
        wide = PLAIN | {"lstrip": True}
        others = [bytes_table(["ab"]), bytes_table([], [("ab", wide)]), bytes_table([], [("ab", SPECIAL)])]
        choice = unite(bytes_table(), others)
        assert choice.table.added == {"ab": wide}
        assert choice.table.ids["ab"] == 256
        assert choice.remarks == ("1 token with other flags in another model; the first one's stay: 'ab'",)

    def test_flags_of_the_base_stay(self):
        base = bytes_table([], [("<s>", PLAIN)])
        choice = unite(base, [bytes_table([], [("<s>", SPECIAL)])])
        assert choice.table is base
        assert choice.remarks == ("1 token with other flags in another model; the first one's stay: '<s>'",)

    def test_ordinary_tokens_of_the_base_become_special_under_their_ids(self):
        """A prompt format of another model needs its tokens whole."""
        base, other = bytes_table(["[I]"]), bytes_table([], [("[I]", SPECIAL), ("ab", PLAIN)])
        number = base.ids["[I]"]
        choice = unite(base, [other])
        assert choice.table.ids["[I]"] == number
        assert cut(choice.table, "x[I]y") == [base.ids["x"], number, base.ids["y"]]
        assert cut(choice.table, "xab") == [base.ids["x"], choice.table.ids["ab"]]
        assert choice.remarks[0] == "1 token of the base made special, as in another model: '[I]'"

    def test_ordinary_tokens_of_the_base_stay_so_where_another_model_only_added_them(self):
        base, other = bytes_table(["ab"]), bytes_table([], [("ab", PLAIN)])
        choice = unite(base, [other])
        assert choice.table is base
        assert choice.remarks == ("1 token of the base kept ordinary, though added ones in another model: 'ab'",)

    def test_added_tokens_of_the_base_keep_their_ids_when_the_vocabulary_grows(self):
        """The library counts added tokens from the number of entries of the vocabulary."""
        base = bytes_table([], [("<a>", SPECIAL), ("<b>", SPECIAL)])
        union = unite(base, [bytes_table(["xy"])]).table
        assert (union.ids["<a>"], union.ids["<b>"], union.ids["xy"]) == (256, 257, 258)
        assert Tokenizer.from_str(table_text(union)).get_vocab() == union.ids

    def test_the_vocabulary_is_left_alone_where_counting_goes_right(self):
        base = bytes_table([], [("<a>", SPECIAL)])
        union = unite(base, [bytes_table([], [("<b>", SPECIAL)])]).table
        assert union.content["model"] == base.content["model"]
        assert [entry["content"] for entry in union.content["added_tokens"]] == ["<a>", "<b>"]

    def test_with_ignore_merges_whole_words_of_others_are_used(self):
        base = bytes_table(["the"], ignore_merges=True)
        choice = unite(base, [bytes_table(["hello"])])
        assert cut(choice.table, "hello") == [choice.table.ids["hello"]]
        assert cut(choice.table, "Othello") == cut(base, "Othello")
        assert "used for whole words only" in choice.remarks[0]

    def test_wordpiece_uses_what_it_finds(self):
        base = table_of(tokenizer_json(wordpiece_model(["[UNK]", "a", "b", "##a", "##b"]), pre_tokenizer=WORDS))
        other = table_of(tokenizer_json(wordpiece_model(["[UNK]", "ab", "##ba"]), pre_tokenizer=WORDS))
        choice = unite(base, [other])
        assert cut(choice.table, "abba") == [choice.table.ids["ab"], choice.table.ids["##ba"]]
        assert "used wherever WordPiece finds them" in choice.remarks[0]

    def test_unigram_uses_a_new_piece_only_where_it_knows_no_other(self):
        pieces = [("<unk>", 0.0), ("a", -14.0), ("b", -2.0), ("c", -13.0)]
        base = table_of(tokenizer_json(unigram_model(pieces)))
        other = table_of(tokenizer_json(unigram_model([("<unk>", 0.0), ("acacacac", -1.0), ("é", -1.0)])))
        choice = unite(base, [other])
        assert cut(choice.table, "bacacacacb") == cut(base, "bacacacacb") == [2, 1, 3, 1, 3, 1, 3, 1, 3, 2]
        assert cut(base, "aé") == [1, 0]
        assert cut(choice.table, "aé") == [1, choice.table.ids["é"]]

    def test_unknown_characters_are_the_exception_of_bpe_too(self):
        base = table_of(tokenizer_json(bpe_model(["<unk>", "a"], [], unk_token="<unk>"), pre_tokenizer=SPACES))
        union = unite(base, [table_of(tokenizer_json(bpe_model(["é"], [])))]).table
        assert cut(base, "aé") == [1, 0]
        assert cut(union, "aé") == [1, union.ids["é"]]

    def test_kinds_may_be_mixed(self):
        base = bytes_table(["the"], [("<s>", SPECIAL)])
        other = table_of(tokenizer_json(unigram_model([("<unk>", 0.0), ("▁the", -1.0)]), [("<|x|>", SPECIAL)]))
        choice = unite(base, [other])
        assert choice.remarks[0] == "text is cut as by the base (BPE); tokens come from Unigram vocabularies, too"
        assert prove(choice.table, table_text(choice.table), None, base) == []
        assert cut(choice.table, "the<|x|>") == [base.ids["the"], choice.table.ids["<|x|>"]]
        assert prove(*(lambda one: (one, table_text(one), None, other))(unite(other, [base]).table)) == []


class TestWithTokens:
    def test_new_tokens_follow_the_highest_id_in_the_given_order(self):
        base = table_of(tokenizer_json(bpe_model({"a": 0, "b": 7}, [])))
        choice = with_tokens(base, ["<z>", "a", "<y>", "<z>"])
        assert choice.table.ids == {"a": 0, "b": 7, "<z>": 8, "<y>": 9}
        assert choice.changed
        assert choice.table.added == {"<z>": PLAIN, "<y>": PLAIN}
        assert Tokenizer.from_str(table_text(choice.table)).get_vocab() == choice.table.ids

    def test_they_are_found_as_they_are_written(self):
        lower = {"type": "Lowercase"}
        base = table_of(byte_level(bpe_model(BYTES, []), [("<", PLAIN), ("EW>", PLAIN)], normalizer=lower))
        table = with_tokens(base, ["<NEW>", " Two Words "]).table
        for text in ("<NEW>", " Two Words "):
            assert cut(table, f"X{text}X") == [base.ids["x"], table.ids[text], base.ids["x"]]
        assert table.ids["<NEW>"] not in cut(table, "<new>")
        assert cut(table, " <NEW> ") == [base.ids["Ġ"], table.ids["<NEW>"], base.ids["Ġ"]]

    def test_known_texts_change_nothing(self):
        base = bytes_table(["the"], [("<s>", SPECIAL)])
        assert with_tokens(base, ["the", "<s>"]).table is base

    def test_an_empty_text_is_refused(self):
        with pytest.raises(UnsupportedError, match="empty text"):
            with_tokens(bytes_table(), ["<x>", ""])


FRAMES = {
    "template": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    },
    "bert": {"type": "BertProcessing", "sep": ["<s>", 256], "cls": ["a", 0]},
    "roberta": {
        "type": "RobertaProcessing",
        "sep": ["a", 0],
        "cls": ["<s>", 256],
        "trim_offsets": True,
        "add_prefix_space": True,
    },
}


class TestWithin:
    def test_added_tokens_without_a_row_leave(self):
        base = bytes_table(["the"], [("<a>", SPECIAL), ("[PAD]", SPECIAL)])
        choice = within(base, base.size - 1)
        assert choice.removed == ("[PAD]",)
        assert choice.remarks == ("1 token of `tokenizer.json` left out, for which the model has no row: '[PAD]'",)
        assert choice.table.content["model"] == base.content["model"]
        assert within(base, base.size).table is base

    @pytest.mark.parametrize("style", [list, " ".join])
    def test_merges_that_mention_or_make_a_lost_token_leave(self, style):
        merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]
        model = bpe_model(["a", "b", "c", "bc", "ab", "abc"], merges)
        model["merges"] = [style(pair) for pair in merges]
        table = within(table_of(tokenizer_json(model)), 4).table
        assert table.content["model"]["merges"] == [style(("b", "c"))]
        assert cut(table, "abc") == [0, 3]

    def test_merges_are_joined_without_the_prefix_of_continuations(self):
        model = bpe_model(["a", "##b", "ab"], [("a", "##b")], continuing_subword_prefix="##")
        table = within(table_of(tokenizer_json(model)), 2).table
        assert table.content["model"]["merges"] == []
        assert cut(table, "ab") == [0, 1]

    def test_pieces_of_unigram_leave_at_the_end(self):
        base = table_of(
            tokenizer_json(unigram_model([("<unk>", 0), ("a", -1), ("b", -1), ("ab", -0.5)]), [("<x>", PLAIN)])
        )
        table = within(base, 3).table
        assert table.content["model"]["vocab"] == [["<unk>", 0], ["a", -1], ["b", -1]]
        assert (cut(base, "ab"), cut(table, "ab")) == ([3], [1, 2])

    def test_padding_with_a_lost_token_is_switched_off(self):
        padding = {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 256,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
        base = table_of(byte_level(bpe_model(BYTES, []), [("[PAD]", SPECIAL), ("<x>", SPECIAL)], padding=padding))
        assert within(base, 257).table.content["padding"] == padding
        table = within(base, 256).table
        assert table.content["padding"] is None
        assert Tokenizer.from_str(table_text(table)).padding is None

    @pytest.mark.parametrize("frame", FRAMES)
    @pytest.mark.parametrize("nested", [False, True])
    def test_a_lost_token_that_frames_texts_is_refused(self, frame, nested):
        processor = FRAMES[frame]
        processor = {"type": "Sequence", "processors": [processor]} if nested else processor
        base = table_of(byte_level(bpe_model(BYTES, []), [("<s>", SPECIAL), ("<x>", PLAIN)], post_processor=processor))
        kept = within(base, 257).table
        assert 256 in cut(kept, "a", special=True)
        with pytest.raises(UnsupportedError, match=r"'<s>' has no row .*\(its id is 256\), but it is put around"):
            within(base, 256)

    @pytest.mark.parametrize(
        "model",
        [
            bpe_model(["a", "<unk>"], [], unk_token="<unk>"),
            unigram_model([("a", -1.0), ("<unk>", 0.0)], unk_id=1),
            wordpiece_model(["a", "[UNK]"]),
            wordlevel_model(["a", "[UNK]"]),
        ],
    )
    def test_a_lost_unknown_token_is_refused(self, model):
        with pytest.raises(UnsupportedError, match="but it is the unknown token"):
            within(table_of(tokenizer_json(model)), 1)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"model": {**bpe_model(["a", "b", "ab"], []), "merges": ["a"]}},
            {"model": {**bpe_model(["a", "b", "ab"], []), "merges": 3}},
            {"model": {**bpe_model(["a", "b", "ab"], []), "merges": [["a", 1]]}},
            {"model": unigram_model([("a", 0), ("b", 0)], unk_id=9)},
            {"post_processor": {"special_tokens": {"a": 3}}},
            {"post_processor": {"sep": []}},
            {"padding": [1]},
        ],
    )
    def test_other_parts_of_a_hostile_file_are_refused(self, wrong):
        content = json.loads(tokenizer_json(bpe_model(["a", "b"], []))) | wrong
        with pytest.raises(CheckpointError, match="not what `tokenizers` writes"):
            within(table_of(json.dumps(content)), 1)

    def test_inputs_are_never_changed(self):
        base = bytes_table(["the"], [("<a>", SPECIAL)])
        before = json.dumps(base.content), dict(base.ids), dict(base.added)
        unite(within(base, 200).table, [base], ["<z>"])
        unite(base, [bytes_table(["xy"], [("<b>", PLAIN)])], ["<z>"])
        assert before == (json.dumps(base.content), base.ids, base.added)


CORPORA = [
    [sample for sample in SAMPLES if sample.isascii()],
    ["the cat sat on the mat", "a hello from Othello", "das Pferd frisst keinen Gurkensalat", "1234 5678"] * 3,
]


def trained(kind, corpus):
    """A really trained tokenizer with two special tokens."""
    special = ["[UNK]", "<s>"]
    if kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=340, special_tokens=special, initial_alphabet=BYTES, show_progress=False
        )
    elif kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="[UNK]", show_progress=False, initial_alphabet=[*LETTERS]
        )
    elif kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return table_of(tokenizer.to_str())


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece", "WordLevel"])
def test_trained_tokenizers_are_united_and_proven(kind):
    base, other = (trained(kind, corpus) for corpus in CORPORA)
    assert base.ids != other.ids
    choice = unite(base, [other], ["<|im_start|>"])
    assert prove(choice.table, table_text(choice.table), None, base) == []
    assert dict(list(choice.table.ids.items())[: base.size]) == base.ids
    if kind in ("BPE", "Unigram"):
        for text in [*CORPORA[0], *(CORPORA[1] if kind == "BPE" else [])]:
            assert cut(choice.table, text) == cut(base, text)


SCRIPT = """
import sys
from tiny_tokenizers import PLAIN, SPECIAL, bpe_model, table_of, tokenizer_json, unigram_model
from mergekit.tokenizer.choice import unite, within
from mergekit.tokenizer.files import table_text
words = [f"w{n}" for n in range(40)]
one = table_of(tokenizer_json(bpe_model(words[:20], []), [(f"<{n}>", SPECIAL) for n in range(9)]))
two = table_of(tokenizer_json(bpe_model(words[::-1], []), [(f"<{n}>", PLAIN) for n in range(5, 15)]))
three = table_of(tokenizer_json(unigram_model([(word, -1.0) for word in words[5:]]), [("w7", SPECIAL)]))
choice = unite(within(one, 25).table, [two, three], ["<z>", "<y>"])
print(table_text(choice.table), choice.remarks, within(two, 11).remarks)
"""


def test_nothing_depends_on_hash_seeds():
    def run(seed):
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        world = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        return subprocess.run([sys.executable, "-c", SCRIPT], env=world, capture_output=True, check=True).stdout

    first, *others = (run(seed) for seed in ("0", "1", "2"))
    assert re.search(rb'"<14>"', first)
    assert others == [first, first]
