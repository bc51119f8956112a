"""Laws of unions, for tokenizers of every kind: ids, how text is cut, and what the library makes of the files."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import EXACT, KINDS, TEXTS, any_text, table_of
from tokenizers import Tokenizer

from mergekit.errors import CheckpointError
from mergekit.tokenizer.choice import unite, with_tokens, within
from mergekit.tokenizer.files import table_text
from mergekit.tokenizer.proof import prove

_QUICK = settings(max_examples=40, deadline=None)


def table(text):
    """The table of a drawn text; the library gives an id twice in some with holes, and such files are refused."""
    try:
        return table_of(text)
    except CheckpointError as error:
        assume("same id" not in str(error))
        raise


def loaded(chosen):
    return Tokenizer.from_str(table_text(chosen))


def cut(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@given(any_text)
@_QUICK
def test_a_table_numbers_tokens_as_the_library_does(text):
    assert table(text).ids == Tokenizer.from_str(text).get_vocab()


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@_QUICK
def test_a_union_keeps_the_base_and_appends_the_others_in_their_order(kind, data):
    base, *others = (table(data.draw(KINDS[kind] if number == 0 else any_text)) for number in range(3))
    union = unite(base, others, ["<new>", "<x>"]).table
    assert list(union.ids.items())[: len(base.ids)] == list(base.ids.items())
    expected = dict.fromkeys(text for one in (base, *others) for text in one.ids) | {"<new>": None, "<x>": None}
    assert list(union.ids) == list(expected)
    new = list(union.ids.values())[len(base.ids) :]
    assert new == list(range(base.size, base.size + len(new)))
    assert loaded(union).get_vocab() == union.ids
    assert table_of(table_text(union)).ids == union.ids


@pytest.mark.parametrize("kind", EXACT)
@given(st.data(), st.lists(TEXTS, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_text_without_new_added_tokens_is_cut_as_by_the_base(kind, data, texts):
    base, *others = (table(data.draw(KINDS[kind] if number == 0 else any_text)) for number in range(3))
    union = unite(base, others).table
    new = union.added.keys() - base.added.keys()
    before, after = loaded(base), loaded(union)
    for text in texts:
        if not any(token in text for token in new):
            assert cut(after, text) == cut(before, text)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@_QUICK
def test_new_added_tokens_are_one_token(kind, data):
    base = table(data.draw(KINDS[kind]))
    union = unite(base, [table(data.draw(any_text))], ["a <new> ", "<n", "<new"]).table
    tokenizer = loaded(union)
    for text in union.added.keys() - base.added.keys():
        shadowed = any(other in text for other in union.added if other != text)
        if not shadowed or not union.added[text]["normalized"]:
            assert cut(tokenizer, text) == [union.ids[text]], text


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), st.lists(TEXTS, max_size=4))
@_QUICK
def test_tokens_are_cut_off_at_any_row(kind, data, texts):
    base = table(data.draw(KINDS[kind]))
    rows = data.draw(st.integers(1, base.size))
    if base.kind != "Unigram":
        assume(base.ids.get("[UNK]", 0) < rows)
    choice = within(base, rows)
    kept = {text: number for text, number in base.ids.items() if number < rows}
    assert choice.table.ids == kept
    assert list(choice.removed) == [text for text in base.ids if text not in kept]
    assert choice.changed == bool(choice.removed) == (choice.table is not base) == bool(choice.remarks)
    tokenizer = loaded(choice.table)
    assert tokenizer.get_vocab() == kept
    for text in texts:
        assert all(number < rows for number in cut(tokenizer, text))


@given(st.data())
@_QUICK
def test_steps_after_each_other_stay_loadable(data):
    """What the planner does: cut every model's table, unite them, add the recipe's tokens."""
    tables = [table(data.draw(any_text)) for _ in range(3)]
    cuts = [within(one, data.draw(st.integers(max(one.size - 3, 1), one.size))).table for one in tables]
    chosen = with_tokens(unite(cuts[0], cuts[1:]).table, ["<new>"]).table
    assert prove(chosen, table_text(chosen)) == []
