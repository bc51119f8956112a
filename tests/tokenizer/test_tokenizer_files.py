"""Tokenizer files of the output: what is copied, what is written, and what loaders make of it."""

import json
import shutil

import pytest
from tiny_tokenizers import (
    BYTES,
    PLAIN,
    SPACES,
    SPECIAL,
    bpe_model,
    byte_level,
    checkpoint_of,
    tokenizer_json,
    unigram_model,
)
from tokenizers import Tokenizer

from mergekit.checkpoint import Checkpoint
from mergekit.errors import CheckpointError
from mergekit.tokenizer.choice import unite, with_tokens, within
from mergekit.tokenizer.files import table_text, tokenizer_files
from mergekit.tokenizer.tables import parse_table, read_table

FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
TEXT = byte_level(bpe_model([*BYTES, "ab"], [("a", "b")]), [("<s>", SPECIAL), ("[PAD]", SPECIAL)])
OTHER = parse_table(byte_level(bpe_model([*BYTES, "xy"], [("x", "y")]), [("<|im|>", SPECIAL), ("<t>", PLAIN)]), "other")
SETTINGS = {
    "add_bos_token": False,
    "added_tokens_decoder": {"257": {"content": "<s>", **FLAGS}, "258": {"content": "[PAD]", **FLAGS}},
    "additional_special_tokens": ["<s>", {"content": "[PAD]", **FLAGS}],
    "bos_token": "<s>",
    "eos_token": {"content": "[PAD]", **FLAGS},
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "[PAD]",
    "prefix": "[PAD]",
    "tokenizer_class": "PreTrainedTokenizerFast",
}
SMALL = {
    "tokenizer.json": TEXT,
    "tokenizer_config.json": json.dumps(SETTINGS),
    "special_tokens_map.json": json.dumps({"bos_token": "<s>", "pad_token": "[PAD]"}),
    "chat_template.jinja": "{{ messages }}",
}
LEGACY = {
    "vocab.json": json.dumps({text: number for number, text in enumerate([*BYTES, "ab"])}),
    "merges.txt": "#version: 0.2\na b\n",
    "tokenizer.model": b"\x00\xff",
}


@pytest.fixture
def model(tmp_path):
    """A folder with tokenizer files, weights and other files."""
    files = SMALL | {"model.safetensors": "w", "config.json": "{}", "LICENSE": "free"}
    return checkpoint_of(tmp_path / "model", files)


def files_of(model, change):
    before = read_table(model)
    return tokenizer_files(model, before, change(before).table)


def test_an_unchanged_table_copies_every_file(model):
    table = read_table(model)
    found = tokenizer_files(model, table, table)
    assert found.copies == {name: model.root / name for name in SMALL}
    assert (found.texts, found.remarks) == ({}, ())


def test_files_that_are_only_in_memory_are_written(tmp_path):
    texts = {"tokenizer.json": TEXT, "tokenizer_config.json": "{}", "generation_config.json": "{}"}
    made = {name: (lambda text=text: text) for name, text in texts.items()}
    model = Checkpoint(tmp_path / "model.gguf", {}, {}, (), (), made)
    table = read_table(model)
    found = tokenizer_files(model, table, table)
    assert (found.copies, found.texts) == ({}, {"tokenizer.json": TEXT, "tokenizer_config.json": "{}"})
    after = with_tokens(table, ["<n>"]).table
    changed = tokenizer_files(model, table, after)
    assert changed.texts == {"tokenizer.json": table_text(after), "tokenizer_config.json": "{}"}


def test_the_file_is_written_in_the_style_of_the_library(model):
    found = files_of(model, lambda table: with_tokens(table, ["<é>"]))
    assert found.texts["tokenizer.json"] == Tokenizer.from_str(found.texts["tokenizer.json"]).to_str(pretty=True)


def test_new_tokens_are_named_where_the_files_name_tokens(model):
    found = files_of(model, lambda table: unite(table, [OTHER]))
    settings = json.loads(found.texts["tokenizer_config.json"])
    new = {"260": {"content": "<|im|>", **FLAGS}, "261": {"content": "<t>", **FLAGS, "special": False}}
    expected = SETTINGS | {
        "added_tokens_decoder": SETTINGS["added_tokens_decoder"] | new,
        "additional_special_tokens": [*SETTINGS["additional_special_tokens"], "<|im|>"],
    }
    assert settings == expected
    assert list(settings) == list(SETTINGS)
    assert set(found.copies) == {"special_tokens_map.json", "chat_template.jinja"}


def test_files_without_lists_of_tokens_stay(model):
    plain = {key: value for key, value in SETTINGS.items() if "added" not in key and "additional" not in key}
    (model.root / "tokenizer_config.json").write_text(json.dumps(plain | {"extra_special_tokens": {"image": "<i>"}}))
    found = files_of(model, lambda table: unite(table, [OTHER]))
    assert list(found.texts) == ["tokenizer.json"]


def test_tokens_without_a_row_are_not_named_any_more(model):
    found = files_of(model, lambda table: within(table, 258))
    settings = json.loads(found.texts["tokenizer_config.json"])
    assert settings == SETTINGS | {
        "added_tokens_decoder": {"257": {"content": "<s>", **FLAGS}},
        "additional_special_tokens": ["<s>"],
        "eos_token": None,
        "pad_token": None,
    }
    assert json.loads(found.texts["special_tokens_map.json"]) == {"bos_token": "<s>"}
    assert found.remarks == (
        "`tokenizer_config.json`, `special_tokens_map.json` edited: tokens without a row are not named any more",
    )


def test_ids_that_the_settings_have_wrong_are_put_right(model):
    wrong = {"257": {"content": "[PAD]", **FLAGS}, "300": {"content": "<s>", **FLAGS}, "900": {"content": "?", **FLAGS}}
    (model.root / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": wrong}))
    found = files_of(model, lambda table: with_tokens(table, ["<n>"]))
    names = {
        number: entry["content"]
        for number, entry in json.loads(found.texts["tokenizer_config.json"])["added_tokens_decoder"].items()
    }
    assert names["258"] == "[PAD]"
    assert names["257"] == "<s>"
    assert names["259"] == "<n>"


def test_other_forms_of_the_vocabulary_stay_while_ordinary_tokens_do(model):
    checkpoint_of(model.root, LEGACY)
    found = files_of(model, lambda table: with_tokens(table, ["<n>"]))
    assert set(LEGACY) <= set(found.copies)
    assert json.loads(found.texts["added_tokens.json"]) == {"<s>": 257, "[PAD]": 258, "<n>": 259}
    cut = files_of(model, lambda table: within(table, 258))
    assert set(LEGACY) <= set(cut.copies)
    assert json.loads(cut.texts["added_tokens.json"]) == {"<s>": 257}


@pytest.mark.parametrize("change", [lambda table: unite(table, [OTHER]), lambda table: within(table, 256)])
def test_other_forms_of_the_vocabulary_are_left_out_when_ordinary_tokens_change(model, change):
    checkpoint_of(model.root, LEGACY)
    found = files_of(model, change)
    assert not set(LEGACY) & (set(found.copies) | set(found.texts))
    assert "added_tokens.json" not in found.texts
    assert found.remarks[0].startswith("`merges.txt`, `tokenizer.model`, `vocab.json` left out")


def test_a_list_of_added_tokens_is_brought_up_to_date(model):
    checkpoint_of(model.root, LEGACY | {"added_tokens.json": json.dumps({"[PAD]": 258, "<s>": 257})})
    whole = files_of(model, lambda table: unite(table, [OTHER]))
    assert json.loads(whole.texts["added_tokens.json"]) == {"[PAD]": 258, "<s>": 257, "<|im|>": 260, "<t>": 261}
    cut = files_of(model, lambda table: within(table, 258))
    assert json.loads(cut.texts["added_tokens.json"]) == {"<s>": 257}


def test_a_token_that_becomes_special_does_not_change_ordinary_ones(model):
    checkpoint_of(model.root, LEGACY)
    other = parse_table(byte_level(bpe_model(BYTES, []), [("ab", SPECIAL)]), "other")
    found = files_of(model, lambda table: unite(table, [other]))
    assert set(LEGACY) <= set(found.copies)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize(
    ("text", "what"), [("{", "not valid JSON"), ("[]", "not a JSON object"), ("[" * 200_000, "JSON")]
)
def test_hostile_files_are_refused_with_their_name(model, name, text, what):
    (model.root / name).write_text(text)
    with pytest.raises(CheckpointError, match=what) as caught:
        files_of(model, lambda table: with_tokens(table, ["<n>"]))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": {"x": 3, "257": None, "258": {"content": [1]}}},
        {"added_tokens_decoder": [], "additional_special_tokens": [None, 3, {"content": {}}], "pad_token": 3},
        {"extra_special_tokens": None, "pad_token": {"content": []}},
    ],
)
def test_strange_entries_of_the_settings_are_left_alone(model, settings):
    (model.root / "tokenizer_config.json").write_text(json.dumps(settings))
    found = files_of(model, lambda table: unite(within(table, 258).table, [OTHER]))
    written = json.loads(found.texts.get("tokenizer_config.json", json.dumps(settings)))
    assert settings.keys() == written.keys()


def folder_of(found, model, target):
    """Write tokenizer files as a merge does."""
    target.mkdir()
    for name, file in found.copies.items():
        shutil.copyfile(file, target / name)
    for name, text in found.texts.items():
        (target / name).write_text(text, encoding="utf-8")
    return target


UNIGRAM = tokenizer_json(
    unigram_model([("<unk>", 0.0), *((text, -2.0 - number / 7) for number, text in enumerate([*"abc", "▁", "▁ab"]))]),
    [("<unk>", SPECIAL), ("[PAD]", SPECIAL)],
    pre_tokenizer=SPACES,
    decoder=SPACES,
)


@pytest.mark.parametrize("text", [TEXT, UNIGRAM])
@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", None])
def test_transformers_loads_the_folder_and_agrees_with_the_library(tmp_path, text, name):
    import transformers

    settings = {"tokenizer_class": name, "pad_token": "[PAD]", "additional_special_tokens": ["[PAD]"]}
    files = {"tokenizer.json": text, "config.json": "{}"}
    files |= {"tokenizer_config.json": json.dumps(settings)} if name else {}
    model = checkpoint_of(tmp_path / "model", files)
    before = read_table(model)
    after = unite(before, [OTHER], ["<new>"]).table
    folder = folder_of(tokenizer_files(model, before, after), model, tmp_path / "out")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    if name:
        loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert loaded.get_vocab() == library.get_vocab() == after.ids
    for prompt in ("<|im|>ab cab xy<new> ab", "a b<t>[PAD]"):
        assert loaded(prompt, add_special_tokens=False)["input_ids"] == library.encode(prompt).ids
    assert loaded("<|im|>", add_special_tokens=False)["input_ids"] == [after.ids["<|im|>"]]
