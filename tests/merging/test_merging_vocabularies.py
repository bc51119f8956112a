"""Merges of models with different vocabularies: every row of the output is what the recipe says, and loads."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import llama_config, llama_shapes, octets, random_tensors, read_model, recipe, write_model
from tiny_tokenizers import BYTES, PLAIN, SPECIAL, TEXTS, bpe_model, byte_level, tokenizer_json, wordlevel_model
from tokenizers import Tokenizer

from mergekit.cli.main import commands
from mergekit.errors import RecipeError
from mergekit.merging import JobOptions, merge_recipe
from mergekit.plan import PlanOptions, plan_merge

WIDTH = 8
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write(folder, tokenizer, rows, seed, tied=False, config=(), files=(), dtype=torch.float32):
    """A one-layer Llama with a tokenizer; returns its tensors."""
    made = llama_config(layers=1, width=WIDTH, inner=8, rows=rows, tied=tied, dtype=dtype, **dict(config))
    tensors = random_tensors(llama_shapes(made), seed, dtype)
    write_model(folder, tensors, made)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer)
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    for name, text in dict(files).items():
        (folder / name).write_text(text)
    return tensors


def merged(text, out, **options):
    """The merged tensors, the tokenizer, config and report."""
    report = merge_recipe(text, out, options=JobOptions(plan=PlanOptions(**options)))
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json")) if (out / "tokenizer.json").exists() else None
    return read_model(out), tokenizer, json.loads((out / "config.json").read_text()), report


def warnings(text):
    return [problem.what for problem in plan_merge(text).findings.warnings]


def byte_tokens(*special, flags=SPECIAL):
    return byte_level(bpe_model(BYTES, []), [(text, flags) for text in special])


def row(tensors, number, name=EMBEDDING):
    return tensors[name][number].double()


# The recipe of the guide: ChatML into a model with Llama 3's turns

LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML = ("<|begin_of_text|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def chats(tmp_path):
    """A base, its ChatML fine-tune, and its fine-tune with Llama 3's turns, which has spare rows."""
    ids = {"bos_token_id": 256, "eos_token_id": 256}
    made = {
        "base": write(tmp_path / "base", byte_tokens("<|begin_of_text|>"), 257, 1, config=ids),
        "chatml": write(tmp_path / "chatml", byte_tokens(*CHATML), 259, 2, config={**ids, "eos_token_id": 258}),
        "llama3": write(tmp_path / "llama3", byte_tokens(*LLAMA3), 264, 3, config={**ids, "eos_token_id": 259}),
    }
    return tmp_path, made


def two_formats(root):
    turns = {text: {"source": str(root / "llama3"), "force": True} for text in LLAMA3[1:]}
    return recipe(
        "linear",
        [(root / name, {"weight": weight}) for name, weight in (("base", 0.5), ("chatml", 0.3), ("llama3", 0.2))],
        base_model=str(root / "base"),
        tokenizer={"source": "union", "tokens": {"<|im_start|>": {"source": str(root / "chatml")}, **turns}},
    )


def test_two_prompt_formats_live_in_one_model(chats, tmp_path):
    root, models = chats
    found, tokenizer, config, _ = merged(two_formats(root), tmp_path / "out")
    ids = tokenizer.get_vocab()
    assert [ids[text] for text in ("<|begin_of_text|>", *CHATML[1:], *LLAMA3[1:])] == [256, 257, 258, 259, 260, 261]
    assert config["vocab_size"] == 262
    assert (config["bos_token_id"], config["eos_token_id"]) == (256, 256)
    for name in (EMBEDDING, HEAD):
        assert found[name].shape == (262, WIDTH)
        for number in range(257):
            expected = 0.5 * row(models["base"], number, name)
            expected += 0.3 * row(models["chatml"], number, name) + 0.2 * row(models["llama3"], number, name)
            torch.testing.assert_close(row(found, number, name), expected, rtol=1e-6, atol=1e-8)
        for number in (257, 258):  # one model has them: all get its row, and weights add up to 1
            torch.testing.assert_close(
                row(found, number, name), row(models["chatml"], number, name), rtol=1e-6, atol=1e-8
            )
        for number, own in ((259, 257), (260, 258), (261, 259)):
            torch.testing.assert_close(row(found, number, name), row(models["llama3"], own, name), rtol=1e-6, atol=1e-8)


def test_the_report_says_how_the_vocabularies_lie_to_each_other(chats, tmp_path):
    root, _ = chats
    base, chatml, llama3 = merged(two_formats(root), tmp_path / "out")[3]["vocabularies"]
    assert [one["model"] for one in (base, chatml, llama3)] == [0, 1, 2]
    assert [one["equal"] for one in (base, chatml, llama3)] == [True, False, False]
    assert chatml["added"] == {"count": 2, "first": ["<|im_start|>", "<|im_end|>"]}
    assert (chatml["shared"], chatml["padding"]) == (257, 0)
    assert llama3["added"]["first"] == list(LLAMA3[1:])
    assert llama3["padding"] == 4


def test_check_says_how_the_vocabularies_lie_to_each_other(chats, tmp_path):
    root, _ = chats
    (tmp_path / "merge.yml").write_text(two_formats(root))
    ran = CliRunner().invoke(commands, ["check", str(tmp_path / "merge.yml")])
    assert ran.exit_code == 0
    told = " ".join(ran.output.split())
    assert f"{root / 'chatml'}: 257 tokens as in {root / 'base'}, 2 added" in told
    assert f"{root / 'llama3'}: 257 tokens as in {root / 'base'}, 3 added" in told
    (tmp_path / "same.yml").write_text(recipe("linear", [(root / "base", {"weight": 1.0})] * 2))
    assert "tokens as in" not in CliRunner().invoke(commands, ["check", str(tmp_path / "same.yml")]).output


def test_prompts_of_both_formats_are_single_special_tokens(chats, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root, _ = chats
    _, tokenizer, _, _ = merged(two_formats(root), tmp_path / "out")
    chatml = "<|im_start|>user\nhi<|im_end|>\n"
    llama3 = "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    for prompt, tokens in ((chatml, CHATML[1:]), (llama3, LLAMA3[1:])):
        encoded = tokenizer.encode(prompt, add_special_tokens=False)
        assert [text for text in encoded.tokens if len(text) > 1] == list(tokens)
        assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == prompt
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded(chatml + llama3)["input_ids"] == tokenizer.encode(chatml + llama3).ids
    assert model.get_input_embeddings().weight.shape[0] == len(loaded) == 262


def test_ids_do_not_depend_on_hash_seeds(chats, tmp_path):
    root, _ = chats
    (tmp_path / "recipe.yml").write_text(two_formats(root))
    program = "from mergekit.cli.main import main_yaml; main_yaml()"
    results = set()
    for seed in "012":
        out = tmp_path / f"out{seed}"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, str(tmp_path / "recipe.yml"), str(out), "--quiet"]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        results.add((out / "tokenizer.json").read_bytes() + (out / "model.safetensors").read_bytes())
    assert len(results) == 1


PARAMETERS = {
    "ties": {"weight": 0.6, "density": 0.5},
    "dare_ties": {"weight": 0.6, "density": 0.5},
    "nuslerp": {"weight": 1.0},
    "slerp": {"t": 0.3},
    "model_stock": {},
}


@pytest.mark.parametrize("method", PARAMETERS)
def test_bytes_do_not_depend_on_workers(method, chats, tmp_path):
    root, _ = chats
    names = ["base", "chatml"] if "slerp" in method else ["base", "chatml", "llama3"]
    text = recipe(
        method,
        [root / name for name in names],
        base_model=None if method == "nuslerp" else str(root / "base"),
        parameters=PARAMETERS[method],
        tokenizer={"source": "union", "pad_to_multiple_of": 64},
    )
    runs = [merged(text, tmp_path / f"{workers}", workers=workers)[0] for workers in (1, 2, 5)]
    assert runs[0][EMBEDDING].shape[0] == 320
    assert len({tuple(octets(tensor) for tensor in run.values()) for run in runs}) == 1


# Any vocabularies


@st.composite
def vocabularies(draw):
    """Two or three models' tokens in an order of their own, and what is said about some of them."""
    words = [f"w{number}" for number in range(9)]
    models = []
    for _ in range(draw(st.integers(2, 3))):
        own = draw(st.lists(st.sampled_from(words), min_size=1, max_size=9, unique=True))
        models.append((["[UNK]", *own], draw(st.integers(0, 3))))
    entries = {}
    for word in draw(st.lists(st.sampled_from([*words, "new"]), max_size=3, unique=True)):
        having = [index for index, (own, _) in enumerate(models) if word in own]
        kinds = ["zero", "other", None, *(["same"] if having else [])]
        kind = draw(st.sampled_from(kinds))
        index = draw(st.sampled_from(having if kind == "same" else range(len(models))))
        number = draw(st.integers(0, len(models[index][0]) - 1))
        entries[word] = (kind, index, number, draw(st.booleans()))
    return models, entries, draw(st.sampled_from(["union", "base", 1])), draw(st.sampled_from([None, 4]))


def settings_of(entries, roots):
    sources = {
        "zero": lambda index, number: {"kind": "zero"},
        "other": lambda index, number: {"kind": "model_token", "model": str(roots[index]), "token_id": number},
        "same": lambda index, number: str(roots[index]),
    }
    return {
        word: {"force": force, **({"source": sources[kind](index, number)} if kind else {})}
        for word, (kind, index, number, force) in entries.items()
    }


def expected_row(text, models, tensors, entries, name):
    """The mean of all models' rows of one token, in float64, by the words of the specification."""
    have = [index for index, (own, _) in enumerate(models) if text in own]
    kind, index, number, force = entries.get(text, (None, 0, 0, False))
    if kind == "zero":
        stand_in = torch.zeros(WIDTH, dtype=torch.float64)
    elif kind in ("same", "other"):
        number = models[index][0].index(text) if kind == "same" else number
        stand_in = row(tensors[index], number, name)
    elif have:
        chosen = [0] if 0 in have else have
        stand_in = torch.stack([row(tensors[one], models[one][0].index(text), name) for one in chosen]).mean(0)
    else:
        stand_in = torch.zeros(WIDTH, dtype=torch.float64)
    rows = [
        row(tensors[one], own.index(text), name) if text in own and not force else stand_in
        for one, (own, _) in enumerate(models)
    ]
    return torch.stack(rows).mean(0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=vocabularies(), tied=st.booleans())
def test_every_row_is_the_specified_combination(made, tied, tmp_path_factory):
    models, entries, source, multiple = made
    root = tmp_path_factory.mktemp("any")
    roots = [root / str(index) for index in range(len(models))]
    tensors = [
        write(folder, tokenizer_json(wordlevel_model(own)), len(own) + spare, index, tied)
        for index, (folder, (own, spare)) in enumerate(zip(roots, models, strict=True))
    ]
    tokenizer = {"source": str(roots[1]) if source == 1 else source, "tokens": settings_of(entries, roots)}
    if multiple:
        tokenizer["pad_to_multiple_of"] = multiple
    text = recipe("linear", roots, base_model=str(roots[0]), tokenizer=tokenizer)
    found, library, config, _ = merged(text, root / "out")
    keeper = 1 if source == 1 else 0
    wanted = dict.fromkeys(models[keeper][0])
    if source == "union":
        wanted |= dict.fromkeys(word for own, _ in models for word in own)
    wanted = list(wanted | dict.fromkeys(entries))
    ids = library.get_vocab()
    assert sorted(ids, key=ids.get) == wanted
    assert sorted(ids.values()) == list(range(len(wanted)))
    height = max(len(wanted), sum(map(int, [len(models[keeper][0]), models[keeper][1]])))
    if multiple:
        height = -(-len(wanted) // multiple) * multiple
    for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
        assert found[name].shape == (height, WIDTH) == (config["vocab_size"], WIDTH)
        exact = [expected_row(word, models, tensors, entries, name) for word in wanted]
        torch.testing.assert_close(found[name][: len(wanted)].double(), torch.stack(exact), rtol=1e-5, atol=1e-7)
        if multiple:
            padding = torch.stack(exact).mean(0).expand(height - len(wanted), WIDTH)
            torch.testing.assert_close(found[name][len(wanted) :].double(), padding, rtol=1e-5, atol=1e-7)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_text_is_cut_as_by_the_base(text, tmp_path_factory):
    root = tmp_path_factory.mktemp("cut")
    base, other = (
        byte_tokens("<s>"),
        byte_level(bpe_model([*BYTES, "ab", "cd"], [("a", "b"), ("c", "d")]), [("<s>", SPECIAL)]),
    )
    write(root / "a", base, 257, 0)
    write(root / "b", other, 259, 1)
    _, tokenizer, _, _ = merged(recipe("linear", [root / "a", root / "b"], tokenizer={"source": "union"}), root / "out")
    assert tokenizer.encode(text).ids == Tokenizer.from_str(base).encode(text).ids
    assert {"ab", "cd"} <= tokenizer.get_vocab().keys()


# Recipes that say nothing


def test_equal_vocabularies_are_copied_byte_for_byte(tmp_path):
    tokenizer = byte_tokens("<s>")
    for seed, name in enumerate("ab"):
        write(tmp_path / name, tokenizer, 264, seed, files={"special_tokens_map.json": '{ "bos_token":"<s>"}'})
    plain = recipe("linear", [tmp_path / "a", tmp_path / "b"])
    found, _, config, _ = merged(plain, tmp_path / "plain")
    asked, _, _, _ = merged(
        recipe("linear", [tmp_path / "a", tmp_path / "b"], tokenizer_source="union"), tmp_path / "asked"
    )
    assert config["vocab_size"] == 264
    for out in ("plain", "asked"):
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            assert (tmp_path / out / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert {name: octets(tensor) for name, tensor in found.items()} == {
        name: octets(tensor) for name, tensor in asked.items()
    }
    assert warnings(plain) == []


def test_padding_rows_differ_and_ids_agree(tmp_path):
    first = write(tmp_path / "a", byte_tokens("<s>"), 264, 0)
    second = write(tmp_path / "b", byte_tokens("<s>", "<t>"), 258, 1)
    text = recipe("linear", [tmp_path / "a", tmp_path / "b"])
    (warning,) = warnings(text)
    assert warning == (
        f"the vocabularies have 264 and 258 rows: the output has 264, as {tmp_path / 'a'}; rows that {tmp_path / 'b'} "
        "lacks are taken from it"
    )
    found, tokenizer, config, _ = merged(text, tmp_path / "out")
    filled = torch.cat([second[EMBEDDING], first[EMBEDDING][258:]])
    torch.testing.assert_close(found[EMBEDDING], (first[EMBEDDING] + filled) / 2)
    assert config["vocab_size"] == 264
    swapped = recipe("linear", [tmp_path / "b", tmp_path / "a"])
    found, tokenizer, config, _ = merged(swapped, tmp_path / "swapped")
    assert found[EMBEDDING].shape[0] == config["vocab_size"] == 258
    assert "further rows of" in warnings(swapped)[0]
    assert "<t>" in tokenizer.get_vocab()


def test_other_tokens_under_the_same_ids_are_told(tmp_path):
    write(tmp_path / "a", byte_tokens("<s>", "<t>"), 258, 0)
    write(tmp_path / "b", byte_tokens("<s>", "<u>"), 258, 1)
    text = recipe("linear", [tmp_path / "a", tmp_path / "b"])
    (warning,) = warnings(text)
    assert warning == f"1 id means another token in {tmp_path / 'b'} than in {tmp_path / 'a'}: 257 is '<u>' and '<t>'"
    assert "union" in plan_merge(text).findings.warnings[0].hint


def test_other_tokens_under_the_same_ids_and_other_sizes_are_refused(tmp_path):
    write(tmp_path / "a", byte_tokens("<s>", "<t>"), 258, 0)
    write(tmp_path / "b", byte_tokens("<u>"), 257, 1)
    with pytest.raises(RecipeError) as caught:
        plan_merge(recipe("linear", [tmp_path / "a", tmp_path / "b"]))
    assert "union" in str(caught.value)
    cropped = plan_merge(recipe("linear", [tmp_path / "a", tmp_path / "b"]), options=PlanOptions(crop_vocabulary=True))
    assert next(task for task in cropped.tasks if task.out.name == EMBEDDING).out.shape == (257, WIDTH)


# SLERP of vocabulary tensors


def arc(a, b, t):
    """The point on the arc between two whole tensors, in float64."""
    a, b = a.double(), b.double()
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


@pytest.mark.parametrize("where", ["top", "parameters"])
def test_vocabulary_tensors_are_merged_on_the_arc(where, tmp_path):
    first, second = (write(tmp_path / name, byte_tokens("<s>"), 257, seed) for seed, name in enumerate("ab"))
    models = [(tmp_path / "a", {"weight": 0.75}), (tmp_path / "b", {"weight": 0.25})]
    setting = {"embed_slerp": True} if where == "top" else {"parameters": {"embed_slerp": True}}
    text = recipe("linear", models, base_model=str(tmp_path / "a"), **setting)
    assert warnings(text) == []
    found, *_ = merged(text, tmp_path / "out")
    for name in found:
        straight = 0.75 * first[name].double() + 0.25 * second[name].double()
        expected = arc(first[name], second[name], 0.25) if name in (EMBEDDING, HEAD) else straight
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-7)


def test_vocabulary_tensors_of_a_base_and_a_model_meet_halfway(tmp_path):
    first, second = (write(tmp_path / name, byte_tokens("<s>"), 257, seed) for seed, name in enumerate("ab"))
    text = recipe(
        "task_arithmetic",
        [(tmp_path / "b", {"weight": 0.3})],
        base_model=str(tmp_path / "a"),
        embed_slerp=True,
    )
    found, *_ = merged(text, tmp_path / "out")
    expected = arc(first[EMBEDDING], second[EMBEDDING], 0.5)
    torch.testing.assert_close(found[EMBEDDING].double(), expected, rtol=1e-5, atol=1e-7)


def test_three_models_have_no_arc(tmp_path):
    for seed, name in enumerate("abc"):
        write(tmp_path / name, byte_tokens("<s>"), 257, seed)
    models = [(tmp_path / name, {"weight": 1}) for name in "abc"]
    (warning,) = warnings(recipe("linear", models, embed_slerp=True))
    assert warning.startswith("embed_slerp has an effect on tensors of two models only")
    found, *_ = merged(recipe("linear", models, embed_slerp=True), tmp_path / "out")
    plain, *_ = merged(recipe("linear", models), tmp_path / "plain")
    assert octets(found[EMBEDDING]) == octets(plain[EMBEDDING])


# Ids, holes, and rows that are not there


def test_tokens_without_a_row_leave_the_tokenizer(tmp_path):
    first = write(tmp_path / "a", byte_tokens("<s>", "<t>", "<u>"), 257, 0)
    write(tmp_path / "b", byte_tokens("<s>", "<t>"), 258, 1)
    text = recipe("linear", [tmp_path / "a", tmp_path / "b"], tokenizer={"source": "union"})
    found, tokenizer, _, _ = merged(text, tmp_path / "out")
    assert "<u>" not in tokenizer.get_vocab()
    assert tokenizer.token_to_id("<t>") == 257  # which the second model has a row for
    assert any("no row" in warning and "'<t>', '<u>'" in warning for warning in warnings(text))
    assert found[EMBEDDING].shape[0] == 258 == first[EMBEDDING].shape[0] + 1


def test_rows_of_no_token_stay_the_base_s(tmp_path):
    vocab = {text: number + (number > 100) for number, text in enumerate(BYTES)}  # no token has id 101
    holey = byte_level(bpe_model(vocab, []))
    first = write(tmp_path / "a", holey, 260, 0)
    write(tmp_path / "b", byte_tokens("<s>"), 257, 1)
    text = recipe("linear", [tmp_path / "a", tmp_path / "b"], tokenizer={"source": "union"})
    found, tokenizer, _, _ = merged(text, tmp_path / "out")
    for number in (101, 258, 259):
        torch.testing.assert_close(found[EMBEDDING][number], first[EMBEDDING][number])
    assert tokenizer.token_to_id("<s>") == 257
    assert found[EMBEDDING].shape[0] == 260


def test_another_model_s_tokenizer_brings_its_ids(tmp_path):
    ids = {"bos_token_id": 256, "eos_token_id": 257, "image_token_id": 258}
    own = {"generation_config.json": '{"eos_token_id": [257], "pad_token_id": 256}'}
    write(tmp_path / "a", byte_tokens("<s>", "</s>", "<img>"), 259, 0, config=ids, files=own)
    theirs = {"bos_token_id": 257, "eos_token_id": 258}
    files = {"generation_config.json": '{"eos_token_id": [258, 256]}', "chat_template.jinja": "{{ messages }}"}
    other = write(tmp_path / "b", byte_tokens("<img>", "<s>", "<end>"), 259, 1, config=theirs, files=files)
    text = recipe(
        "linear",
        [(tmp_path / "a", {"weight": 0.25}), (tmp_path / "b", {"weight": 0.75})],
        base_model=str(tmp_path / "a"),
        tokenizer={"source": str(tmp_path / "b")},
    )
    found, tokenizer, config, _ = merged(text, tmp_path / "out")
    assert tokenizer.get_vocab() == Tokenizer.from_file(str(tmp_path / "b" / "tokenizer.json")).get_vocab()
    assert [config[key] for key in ids] == [257, 258, 256]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [258, 256], "pad_token_id": 257}
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    torch.testing.assert_close(found[EMBEDDING][258], other[EMBEDDING][258])


def test_a_tokenizer_may_come_from_a_model_that_is_not_merged(tmp_path):
    write(tmp_path / "a", byte_tokens("<s>"), 257, 0)
    write(tmp_path / "b", byte_tokens("<s>"), 257, 1)
    third = tmp_path / "third"
    third.mkdir()
    (third / "tokenizer.json").write_text(byte_tokens("<t>", "<s>"))
    text = recipe("linear", [tmp_path / "a", tmp_path / "b"], tokenizer={"source": str(third)})
    found, tokenizer, _, _ = merged(text, tmp_path / "out")
    assert tokenizer.token_to_id("<s>") == 257
    assert found[EMBEDDING].shape[0] == 258
    assert torch.count_nonzero(found[EMBEDDING][256]) == 0


def test_spare_rows_take_new_tokens(tmp_path):
    write(tmp_path / "a", byte_tokens("<s>"), 320, 0)
    other = write(tmp_path / "b", byte_tokens("<s>", "<t>"), 258, 1)
    text = recipe(
        "linear",
        [tmp_path / "a", tmp_path / "b"],
        tokenizer={"source": "base", "tokens": {"<t>": {"source": str(tmp_path / "b")}}},
    )
    found, tokenizer, config, _ = merged(text, tmp_path / "out")
    assert tokenizer.token_to_id("<t>") == 257
    assert found[EMBEDDING].shape[0] == config["vocab_size"] == 320
    torch.testing.assert_close(found[EMBEDDING][257], other[EMBEDDING][257])


def test_half_precision_rows_keep_their_bits(tmp_path):
    tensors = [
        write(tmp_path / name, byte_tokens("<s>", extra), 258, seed, dtype=torch.bfloat16)
        for seed, (name, extra) in enumerate((("a", "<t>"), ("b", "<u>")))
    ]
    text = recipe(
        "passthrough", [tmp_path / "a"], base_model=str(tmp_path / "a"), tokenizer={"source": str(tmp_path / "b")}
    )
    found, *_ = merged(text, tmp_path / "out")
    assert found[EMBEDDING].dtype == torch.bfloat16
    assert torch.equal(found[EMBEDDING][:257], tensors[0][EMBEDDING][:257])


MISTAKES = {
    "no such token": ({"<t>": {"source": "b"}}, "has no token '<t>'"),
    "no such model": ({"<t>": {"source": "c"}}, "takes no part in the merge"),
    "no such row": ({"<t>": {"source": {"kind": "model_token", "model": "b", "token_id": 999}}}, "has no row 999"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_sources_of_tokens_that_are_not_there(name, tmp_path):
    tokens, message = MISTAKES[name]
    for seed, folder in enumerate("ab"):
        write(tmp_path / folder, byte_tokens("<s>"), 257, seed)

    def placed(value):
        if isinstance(value, dict):
            return {key: placed(inner) for key, inner in value.items()}
        return str(tmp_path / value) if value in ("a", "b", "c") else value

    text = recipe("linear", [tmp_path / "a", tmp_path / "b"], tokenizer={"source": "union", "tokens": placed(tokens)})
    with pytest.raises(RecipeError) as caught:
        plan_merge(text)
    (problem,) = caught.value.problems
    assert message in problem.what
    assert problem.place.path == "tokenizer.tokens.<t>"


def test_a_plain_flag_of_an_added_token_is_kept(tmp_path):
    write(tmp_path / "a", byte_tokens(), 256, 0)
    flags = PLAIN | {"lstrip": True}
    write(tmp_path / "b", byte_tokens("<t>", flags=flags), 257, 1)
    text = recipe("linear", [tmp_path / "a", tmp_path / "b"], tokenizer={"source": "union"})
    merged(text, tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["added_tokens"]
    assert entry == {"id": 256, "content": "<t>", **flags}


def test_a_large_vocabulary_is_aligned_without_a_copy_in_memory(tmp_path):
    words = [f"w{number}" for number in range(40_000)]
    random = np.random.default_rng(0)
    for seed, name in enumerate("ab"):
        order = words if name == "a" else [words[number] for number in random.permutation(len(words))]
        write(tmp_path / name, tokenizer_json(wordlevel_model(["[UNK]", *order])), 40_001, seed)
    plan = plan_merge(recipe("linear", [tmp_path / "a", tmp_path / "b"], tokenizer={"source": "union"}))
    task = next(task for task in plan.tasks if task.out.name == EMBEDDING)
    assert task.kept_bytes == 0
    assert task.read_bytes == 2 * 40_001 * WIDTH * 4
