"""``mergekit tokens``: text, JSON, errors."""

import json
import shutil

import pytest
from click.testing import CliRunner

from mergekit.cli.main import commands

ROWS = 32
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


def tokens(*words):
    return CliRunner().invoke(commands, ["tokens", *map(str, words)])


def write_tokenizer(folder, vocab, added=()):
    entries = [{"id": number, "content": text, **FLAGS, "special": True} for text, number in added]
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": entries, "model": model}))


@pytest.fixture
def pair(models, tmp_path):
    """Two models, of six tokens and of seven: two of them new, three moved, one without a row."""
    for name in "ab":
        shutil.copytree(models / name, tmp_path / name)
    write_tokenizer(tmp_path / "a", {text: number for number, text in enumerate("vwxyz")}, [("<s>", 5)])
    write_tokenizer(tmp_path / "b", {"v": 0, "w": 1, "y": 2, "x": 3, "long" * 20: 4, "q": 40}, [("<s>", 6)])
    return tmp_path


def test_text_and_json_say_the_same(pair):
    result = tokens(pair / "a", pair / "b")
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(tokens(pair / "a", pair / "b", "--json").stdout)
    assert answer["ok"] is True
    first, second = answer["models"]
    assert (first["model"], first["tokens"], first["rows"], first["padding"]) == (str(pair / "a"), 6, ROWS, 26)
    assert second["shared"] == 2
    assert second["moved"] == {
        "count": 3,
        "first": [
            {"token": "y", "id": 2, "first": 3},
            {"token": "x", "id": 3, "first": 2},
            {"token": "<s>", "id": 6, "first": 5},
        ],
    }
    assert second["beyond"] == {"count": 1, "first": ["q"]}
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["model", "kind", "tokens", "rows", "shared", "moved", "added", "absent", "padding"] in lines
    assert ["1", "BPE", "6", "32", "6", "0", "0", "0", "26"] in lines
    assert ["2", "BPE", "7", "32", "2", "3", "2", "1", "0"] in lines
    assert "  moved       'y' 3 → 2, 'x' 2 → 3, '<s>' 5 → 6" in result.stdout
    assert "  absent      'z'" in result.stdout
    assert "  no token    5, 7, 8, 9, 10, 11 and 28 more" in result.stdout
    assert "  no row      'q'" in result.stdout
    assert result.stdout.endswith("Ids do not mean the same tokens in all models.\n")
    assert max(map(len, result.stdout.replace(str(pair), "").splitlines())) <= 80


def test_equal_vocabularies_are_said_to_be_so(pair):
    result = tokens(pair / "a", pair / "a")
    assert result.exit_code == 0
    assert result.stdout.endswith("All ids mean the same tokens.\n")
    assert json.loads(tokens(pair / "a", pair / "a", "--json").stdout)["models"][1]["equal"] is True


def test_all_tokens_are_listed_on_request(pair):
    write_tokenizer(pair / "b", {f"t{number}": number for number in range(30, 39)})
    few, every = (tokens(pair / "a", pair / "b", *flags).stdout for flags in ((), ("--all",)))
    assert "'t35' and 3 more" in few
    assert "'t38'" not in few
    assert "'t36', 't37', 't38'" in every
    listed = json.loads(tokens(pair / "a", pair / "b", "--all", "--json").stdout)["models"][1]["added"]
    assert len(listed["first"]) == listed["count"] == 9


def test_a_model_without_a_tokenizer_is_an_error(pair):
    (pair / "b" / "tokenizer.json").unlink()
    result = tokens(pair / "a", pair / "b")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "the model has no tokenizer" in result.stderr
    failure = json.loads(tokens(pair / "a", pair / "b", "--json").stdout)
    assert (failure["ok"], failure["exit_code"]) == (False, 4)


def test_a_model_is_needed():
    assert tokens().exit_code == 2
