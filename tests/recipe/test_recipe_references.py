import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit.recipe import Address, ModelRef

part = st.text(st.characters(codec="utf-8", exclude_characters="@+", exclude_categories=["C", "Z"]), min_size=1)


def test_four_parts():
    assert ModelRef.parse("a/b@r+c/d@q") == ModelRef(Address("a/b", "r"), Address("c/d", "q"))


@pytest.mark.parametrize("text", ["a", "a@r", "a+c", "a@r+c", "a+c@q", "a@r+c@q", r"C:\models\a", "C:/models/a@rev"])
def test_text_form_is_kept(text):
    assert str(ModelRef.parse(text)) == text


def test_windows_paths():
    assert ModelRef.parse("C:/models/a@rev").model == Address("C:/models/a", "rev")
    assert ModelRef.parse("C:\\models\\a\\").model == Address("C:\\models\\a")
    assert Address("C:\\").path == "C:\\"


@pytest.mark.parametrize("text", ["./a", "a/", "a", "././a//", ".//a", " a "])
def test_spellings_of_one_folder_are_one_model(text):
    assert ModelRef.parse(text) == ModelRef(Address("a"))


@pytest.mark.parametrize(
    ("text", "path"), [("/", "/"), (".", "."), ("./", "."), ("..", ".."), ("../a/", "../a"), ("/a/", "/a")]
)
def test_special_paths(text, path):
    assert Address(text).path == path


def test_different_models_differ():
    assert len({ModelRef.parse(text) for text in ("a", "a@r", "a+b", "A", "/a", "../a")}) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the path of a model is empty"),
        ("  ", "the path of a model is empty"),
        ("@r", "the path of a model is empty"),
        ("+c", "the path of a model is empty"),
        ("a@", "the revision of `a` is empty"),
        ("a+", "`a+` ends in `+` but names no adapter"),
        ("a+b@", "the revision of `b` is empty"),
        ("a+b+c", "`a+b+c` has more than one `+`"),
        ("a@b@c", "`a@b@c` has more than one `@`"),
        ("a\0", "the path of a model has a null character"),
    ],
)
def test_bad_references(text, message):
    with pytest.raises(ValueError, match="^" + message.replace("+", r"\+") + "$"):
        ModelRef.parse(text)


def test_the_mapping_form_may_hold_what_text_cannot():
    assert Address("a@b+c").path == "a@b+c"


@given(part, st.none() | part)
def test_addresses_survive_their_text(path, revision):
    address = Address(path, revision)
    assert Address.parse(str(address)) == address
    assert Address(address.path) == Address("./" + address.path) or address.path.startswith("/")
