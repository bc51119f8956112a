import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit.recipe import nearest

METHODS = ["linear", "slerp", "ties", "dare_ties", "dare_linear", "della", "della_linear", "task_arithmetic"]
NAMES = ["weight", "density", "normalize", "lambda", "t", "r", "eps", "models", "merge_method", "layer_range"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("wieght", "weight"),
        ("weights", "weight"),
        ("Weight", "weight"),
        ("merge_metod", "merge_method"),
        ("merge-method", "merge_method"),
        ("MergeMethod", "merge_method"),
        ("layer range", "layer_range"),
        ("lamda", "lambda"),
        ("densty", "density"),
        ("model", "models"),
        ("normalise", "normalize"),
        ("T", "t"),
    ],
)
def test_near_misses_of_keys(name, meant):
    assert nearest(name, NAMES) == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dare-ties", "dare_ties"),
        ("DARE TIES", "dare_ties"),
        ("slurp", "slerp"),
        ("task_arithmatic", "task_arithmetic"),
    ],
)
def test_near_misses_of_methods(name, meant):
    assert nearest(name, METHODS) == meant


@pytest.mark.parametrize(
    "name",
    [
        "dare_density",
        "residual_weight",
        "dare_epsilon",
        "x_weight",
        "name",
        "r2",
        "tt",
        "",
        "_",
        "foundation",
        "w" * 99,
    ],
)
def test_names_that_resemble_nothing(name):
    assert nearest(name, NAMES) is None


def test_a_method_that_contains_another_is_not_taken_for_it():
    assert nearest("dare_linear", ["linear", "ties"]) is None


def test_the_closest_wins_whatever_the_order():
    assert nearest("dare_tie", ["dare_tics", "dare_ties"]) == nearest("dare_tie", ["dare_ties", "dare_tics"])
    assert nearest("weigt", ["weights", "weight"]) == "weight"


@given(st.sampled_from(NAMES), st.data())
def test_one_swap_is_forgiven_in_words_of_four_letters(name, data):
    letters = name.replace("_", "")
    if len(letters) < 4:
        return
    at = data.draw(st.integers(0, len(letters) - 2))
    swapped = letters[:at] + letters[at + 1] + letters[at] + letters[at + 2 :]
    assert nearest(swapped, [name]) == name


@given(st.text(max_size=30))
def test_any_text_is_judged(name):
    assert nearest(name, NAMES) in {*NAMES, None}
