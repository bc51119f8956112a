"""Vocabulary matrices in the order of the output: every row is what is said about it, in any stretch."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_in_memory import Memory

from mergekit.plan.views import Aligned, Pieces, RowMap, aligned
from mergekit.plan.vocabulary import Order, Row, by_number, by_token


def widened(raw):
    return (raw.astype(np.uint32) << 16).view(np.float32) if raw.dtype == np.uint16 else raw


def matrix(seed, shape, narrow):
    numbers = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16) if narrow else numbers


def stretches(view, memory, cuts, dtype=np.float32):
    """All entries, read in stretches."""
    entries = np.empty(view.spec.count, dtype)
    bounds = sorted({0, view.spec.count, *(cut % (view.spec.count + 1) for cut in cuts)})
    for start, stop in pairwise(bounds):
        view.read(memory, start, stop, entries[start:stop])
    return entries


@st.composite
def orders(draw):
    """Some models' heights, and an order of a few rows of them."""
    heights = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    count = draw(st.integers(1, 9))
    rows = {
        model: np.array([draw(st.integers(-1, height - 1)) for _ in range(count)])
        for model, height in enumerate(heights)
    }
    given_rows = {}
    for row in draw(st.sets(st.integers(0, count - 1), max_size=3)):
        model = draw(st.integers(0, len(heights) - 1))
        given_rows[row] = draw(st.sampled_from([None, Row(model, draw(st.integers(0, heights[model] - 1)))]))
    forced = frozenset(draw(st.sets(st.integers(0, count - 1), max_size=2)))
    base = draw(st.sampled_from([None, *range(len(heights))]))
    return heights, Order(rows, given_rows, forced, draw(st.integers(0, 3))), base


def expected(order, base, matrices):
    """The matrices of all models in float64, row by row, by the words of the contract."""
    found = []
    for model in range(len(matrices)):
        lines = []
        for row in range(order.rows[0].size):
            have = [other for other in range(len(matrices)) if order.rows[other][row] >= 0]
            if model in have and row not in order.forced:
                lines.append(matrices[model][order.rows[model][row]])
            elif row in order.given:
                source = order.given[row]
                lines.append(np.zeros_like(matrices[0][0]) if source is None else matrices[source.model][source.row])
            elif base in have:
                lines.append(matrices[base][order.rows[base][row]])
            elif have:
                lines.append(np.mean([matrices[other][order.rows[other][row]] for other in have], axis=0))
            else:
                lines.append(np.zeros_like(matrices[0][0]))
        lines += [np.mean(lines, axis=0)] * order.padding
        found.append(np.stack(lines))
    return found


@settings(max_examples=150, deadline=None)
@given(orders(), st.integers(1, 5), st.booleans(), st.integers(0, 99), st.lists(st.integers(0, 200), max_size=4))
def test_every_row_is_what_the_contract_says(made, width, narrow, seed, cuts):
    heights, order, base = made
    memory = Memory()
    stored = [matrix(seed + model, (height, width), narrow) for model, height in enumerate(heights)]
    views = [memory.store(f"m{model}", array) for model, array in enumerate(stored)]
    found = order.apply(list(range(len(views))), base, views)
    wide = [widened(array).astype(np.float64) for array in stored]
    for view, exact in zip(found, expected(order, base, wide), strict=True):
        memory.begin()
        assert view.spec.shape == exact.shape == (order.height, width)
        whole = stretches(view, memory, [])
        np.testing.assert_allclose(whole.reshape(exact.shape), exact, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(stretches(view, memory, cuts), whole)
        if view.row_format == "BF16":
            raw = stretches(view, memory, cuts, np.uint16)
            np.testing.assert_array_equal(widened(raw), whole)


@pytest.mark.parametrize("shape", [(6,), (1, 6)])
def test_biases_are_aligned_like_matrices(shape):
    memory, bias = Memory(), matrix(0, shape, narrow=True)
    (view,) = Order({0: np.array([5, -1, 0, 1])}).apply([0], None, [memory.store("bias", bias)], len(shape) - 1)
    assert view.spec.shape == (*shape[:-1], 4)
    own = widened(bias).reshape(-1)
    np.testing.assert_array_equal(stretches(view, memory, [1, 3]), [own[5], 0, own[0], own[1]])


def test_rows_that_stay_where_they_are_cost_nothing():
    memory = Memory()
    views = [memory.store(name, matrix(seed, (5, 2), narrow=True)) for seed, name in enumerate("ab")]
    same, cut = (by_number({0: 5, 1: 5}, height).apply([0, 1], 0, views) for height in (5, 3))
    assert same == views
    assert [(type(view), view.spec.shape) for view in cut] == [(Pieces, (3, 2))] * 2


def test_missing_rows_at_the_end_are_the_base_s():
    memory = Memory()
    arrays = [matrix(0, (5, 2), narrow=False), matrix(1, (3, 2), narrow=False)]
    views = [memory.store(name, array) for name, array in zip("ab", arrays, strict=True)]
    base, other = by_number({0: 5, 1: 3}, 5).apply([0, 1], 0, views)
    assert base is views[0]
    assert isinstance(other, Aligned)
    filled = np.concatenate([arrays[1], arrays[0][3:]])
    np.testing.assert_array_equal(stretches(other, memory, [3]).reshape(5, 2), filled)


def test_what_is_read_is_what_is_said():
    memory = Memory()
    views = [memory.store(name, matrix(seed, (50, 4), narrow=True)) for seed, name in enumerate("ab")]
    order = Order({0: np.arange(40), 1: np.where(np.arange(40) % 3, np.arange(40)[::-1], -1)})
    for view in order.apply([0, 1], 0, views):
        memory.begin()
        stretches(view, memory, [7, 90], np.uint16)
        announced = sum(extent.nbytes for extent in view.extents(0, view.spec.count))
        assert memory.read_bytes == view.nbytes == announced == 40 * 4 * 2


def test_a_row_from_a_model_that_does_not_take_part_is_an_error():
    memory = Memory()
    order = Order({0: np.arange(3), 7: np.arange(3)}, {1: Row(7, 2)})
    with pytest.raises(KeyError):
        order.apply([0], None, [memory.store("a", matrix(0, (3, 2), narrow=True))])


@settings(max_examples=60, deadline=None)
@given(st.permutations("abcdef"), st.permutations("cdefgh"), st.integers(1, 8), st.integers(1, 8))
def test_rows_are_found_by_token(first, second, low, high):
    tokens = {text: 7 - place for place, text in enumerate("abcdefgh")}
    ids = {0: {text: place for place, text in enumerate(first)}, 1: {text: place for place, text in enumerate(second)}}
    rows = by_token(tokens, 9, ids, {0: low, 1: high})
    for model, height in ((0, low), (1, high)):
        for text, row in tokens.items():
            own = ids[model].get(text, -1)
            assert rows[model][row] == (own if own < height else -1)
        assert rows[model][8] == -1


def test_rows_of_no_token_are_those_of_the_model_whose_ids_stay():
    rows = by_token({"a": 0, "b": 3}, 6, {0: {"a": 0, "b": 3}, 1: {"b": 0}}, {0: 5, 1: 5}, keepers=[0])
    assert rows[0].tolist() == [0, 1, 2, 3, 4, -1]
    assert rows[1].tolist() == [-1, -1, -1, 0, -1, -1]


def test_a_map_without_rows_is_no_map_of_a_matrix():
    memory = Memory()
    own = memory.store("a", matrix(0, (3, 2), narrow=True))
    assert aligned((own,), 0, RowMap(np.zeros(1, np.int64), *np.zeros((2, 0), np.int64))).spec.shape == (0, 2)
