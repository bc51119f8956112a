"""T1, T4, T5 and T6: which rows are the model's, which are approximated, and what becomes of everything else."""

import json

import numpy as np
import pytest
import torch
from surgery_samples import EMBEDDING, HEAD, OF_DONOR, OF_MODEL, make_pair, words_bpe, words_unigram
from tiny_checkpoints import octets, write_model
from tiny_tokenizers import SPECIAL

from mergekit.checkpoint import Files
from mergekit.errors import IncompatibleModelsError, MergekitError, NonFiniteError
from mergekit.merging import JobOptions
from mergekit.plan import PlanOptions
from mergekit.report.verify import verify_folder
from mergekit.surgery import APPROXIMATIONS, Settings, plan_transplant

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def same_row(found, number, model, row, name=EMBEDDING):
    return octets(found[name][number]) == octets(model.tensors[name][row])


def counts(report, name=EMBEDDING):
    return report["transplant"]["matrices"][name]["rows"]


def warned(report):
    return " | ".join(entry["what"] for entry in report["warnings"])


# T1


@pytest.mark.parametrize("dtype", DTYPES)
def test_t1_rows_of_shared_tokens_keep_their_bits_and_the_rest_is_copied(make, dtype):
    pair = make(dtype=dtype)
    report, tensors = pair.operate()
    for name in (EMBEDDING, HEAD):
        assert tensors[name].shape == (max(pair.donor.ids.values()) + 1, 24)
        assert tensors[name].dtype == dtype
        assert all(same_row(tensors, own, pair.model, row, name) for own, row in pair.shared)
        assert counts(report, name) == {"exact": len(pair.shared), "approximated": len(pair.new)}
    rest = tensors.keys() - {EMBEDDING, HEAD}
    assert all(octets(tensors[name]) == octets(pair.model.tensors[name]) for name in rest)
    assert tensors.keys() == pair.model.tensors.keys()
    assert verify_folder(pair.root / "out").ok


def test_t1_there_are_as_many_rows_as_the_highest_id_and_one_and_ids_without_a_token_get_zeros(make):
    content = json.loads(words_bpe(OF_DONOR))
    vocab = content["model"]["vocab"]
    gap = max(vocab.values()) + 1
    vocab |= {"Ġzz": gap + 5}
    pair = make(donor=json.dumps(content))
    report, tensors = pair.operate()
    assert tensors[EMBEDDING].shape[0] == gap + 6
    assert not tensors[EMBEDDING][gap : gap + 5].any()
    assert tensors[EMBEDDING][gap + 5].any()
    assert counts(report)["no_token"] == 5


def test_t1_special_tokens_are_matched_by_role_then_by_text(make):
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    pair = make(
        model=words_bpe(OF_MODEL, ["<s>", "</s>", "<|tool|>", "<|both|>"]),
        donor=words_bpe(OF_DONOR, ["<|begin|>", "<|end|>", "<|pad|>", "<|tool|>", "<|both|>", "<|new|>"]),
        roles=roles,
    )
    settings = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    settings |= {"mask_token": "<|both|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (pair.donor.root / "tokenizer_config.json").write_text(json.dumps(settings))
    report, tensors = pair.operate()
    expected = {
        "<|begin|>": "<s>",
        "<|end|>": "</s>",
        "<|pad|>": "</s>",
        "<|tool|>": "<|tool|>",
        "<|both|>": "<|both|>",
    }
    for new, old in expected.items():
        assert same_row(tensors, pair.donor.ids[new], pair.model, pair.model.ids[old]), new
    assert counts(report)["approximated"] == len(OF_DONOR) - 90 + 6 + 1


def test_t1_roles_come_from_config_where_the_tokenizer_names_none(make):
    base = len(json.loads(words_bpe(OF_MODEL))["model"]["vocab"])
    other = len(json.loads(words_bpe(OF_DONOR))["model"]["vocab"])
    pair = make(
        model=words_bpe(OF_MODEL, ["<a>", "<b>"]),
        donor=words_bpe(OF_DONOR, ["<c>", "<d>"]),
        bos_token_id=base,
        eos_token_id=[base + 1],
    )
    file = pair.donor.root / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token_id": other + 1, "eos_token_id": other}))
    _, tensors = pair.operate()
    assert same_row(tensors, other + 1, pair.model, base)
    assert same_row(tensors, other, pair.model, base + 1)
    config = json.loads((pair.root / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (other + 1, other)


def test_t1_words_match_across_kinds_of_tokenizers(make):
    """Ġword, ▁word and a byte that is <0xE2> in one and â in the other."""
    pair = make(model=words_unigram(OF_MODEL), donor=words_bpe(OF_DONOR))
    report, tensors = pair.operate()
    for word in OF_MODEL[30:]:
        assert same_row(tensors, pair.donor.ids[f"Ġ{word}"], pair.model, pair.model.ids[f"▁{word}"])
    assert same_row(tensors, pair.donor.ids["â"], pair.model, pair.model.ids["<0xE2>"])
    assert same_row(tensors, pair.donor.ids["Ġ"], pair.model, pair.model.ids["▁"])
    # 90 words, 29 characters with the space, and the bytes that are no text by themselves.
    assert counts(report)["exact"] == 90 + 27 + 3 + 128
    assert verify_folder(pair.root / "out").ok


# T4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("donor_tied", [True, False])
def test_t4_ties_of_model_and_donor(make, tied, donor_tied):
    pair = make(tied=tied, donor_tied=donor_tied)
    _, tensors = pair.operate()
    assert (HEAD in tensors) is not tied
    assert json.loads((pair.root / "out" / "config.json").read_text())["tie_word_embeddings"] is tied
    if not tied:
        other = make_pair(pair.root / "again", donor_tied=True)
        write_model(
            other.donor.root,
            {EMBEDDING: pair.donor.tensors[EMBEDDING if donor_tied else HEAD]}
            | {name: tensor for name, tensor in other.donor.tensors.items() if name != EMBEDDING},
            json.loads((other.donor.root / "config.json").read_text()),
        )
        other.model.root, kept = pair.model.root, tensors[HEAD]
        _, again = other.operate()
        # The head is found with the donor's head, or with its embedding where there is none.
        assert octets(again[HEAD]) == octets(kept)


def test_t4_a_redundant_head_of_a_tied_model_follows_its_embedding(make):
    pair = make(tied=True)
    pair.model.tensors[HEAD] = pair.model.tensors[EMBEDDING].clone()
    write_model(pair.model.root, pair.model.tensors, json.loads((pair.model.root / "config.json").read_text()))
    _, tensors = pair.operate()
    assert octets(tensors[HEAD]) == octets(tensors[EMBEDDING])


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return {
        dtype: make_pair(tmp_path_factory.mktemp("narrow"), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    }


@pytest.mark.parametrize("method", sorted(APPROXIMATIONS))
def test_t4_every_method_works_on_bfloat16_as_on_float32(narrow, method):
    found = {}
    for dtype, pair in narrow.items():
        report, tensors = pair.operate(method, approximation_method=method, k=8)
        found[dtype] = tensors[EMBEDDING][pair.new].double()
        held = report["transplant"]["matrices"][EMBEDDING]["held_out"]
        assert held["tokens"] == 72
    wide, narrowed = found[torch.float32], found[torch.bfloat16]
    assert torch.isfinite(narrowed).all()
    # Pursuits may choose other atoms for other inputs; what they stand for is nearly the same.
    limit = 0.5 if method in ("omp", "mp_rope", "stb") else 0.03
    assert (wide - narrowed).norm() <= limit * wide.norm()


def test_t4_donor_with_rows_for_all_but_its_last_tokens(make):
    new = sorted(OF_DONOR)[-1]
    pair = make(donor_rows=390)
    lacking = [number for number in pair.new if number >= 390]
    assert lacking
    assert f"Ġ{new}" not in pair.model.ids
    report, tensors = pair.operate()
    assert not tensors[EMBEDDING][lacking].any()
    assert tensors[EMBEDDING][[number for number in pair.new if number < 390]].any(dim=1).all()
    assert f"{len(lacking)} tokens of the donor have no row there, and get zeros" in warned(report)
    _, tensors = pair.operate("subword", approximation_method="subword")  # which does not ask the donor
    assert tensors[EMBEDDING][lacking].any(dim=1).all()


def test_t4_donor_with_padding_and_multiples(make):
    pair = make(donor_rows=416)
    _, plain = pair.operate()
    _, padded = pair.operate("padded", donor_padding=True)
    _, multiple = pair.operate("multiple", pad_to_multiple_of=64)
    _, both = pair.operate("both", pad_to_multiple_of=100, donor_padding=True)
    assert [rows[EMBEDDING].shape[0] for rows in (plain, padded, multiple, both)] == [400, 416, 448, 500]
    for rows in (padded, multiple, both):
        assert torch.equal(rows[EMBEDDING][:400], plain[EMBEDDING])
        torch.testing.assert_close(rows[EMBEDDING][-1], plain[EMBEDDING].double().mean(0).float(), rtol=1e-5, atol=1e-7)
    assert json.loads((pair.root / "both" / "config.json").read_text())["vocab_size"] == 500


def test_t4_k_above_the_shared_tokens_is_said_and_what_there_is_is_used(make):
    pair = make(donor=words_unigram(["bem", "zzzzz"]), model=words_bpe(["bem"]))
    shared = counts(pair.operate()[0])["exact"]
    report, tensors = pair.operate("more", k=shared + 1, approximation_method="common_interpolation")
    assert f"`--k {shared + 1}` is more than the {shared} tokens that are shared; {shared} are used" in warned(report)
    assert torch.isfinite(tensors[EMBEDDING]).all()


def strange(words):
    """A tokenizer of whole words only."""
    vocab = {word: number for number, word in enumerate(["[UNK]", *words])}
    whole = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    return json.dumps({"added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "model": whole})


def test_t4_models_that_share_nothing_are_refused_where_something_must_be_learned(make):
    pair = make(model=strange(["ab", "cd"]), donor=json.dumps(json.loads(strange(["ef"])) | {"added_tokens": []}))
    content = json.loads((pair.donor.root / "tokenizer.json").read_text())
    content["model"] |= {"vocab": {"[?]": 0, "ef": 1}, "unk_token": "[?]"}
    (pair.donor.root / "tokenizer.json").write_text(json.dumps(content))
    for method in ("omp", "landmark_pca", "common_interpolation", "stb", "mp_rope"):
        with pytest.raises(IncompatibleModelsError, match="share no token"):
            pair.operate(approximation_method=method)
    _, tensors = pair.operate(approximation_method="mean")
    assert tensors[EMBEDDING].shape == (2, 24)


def test_t4_the_same_tokenizer_changes_nothing(make):
    pair = make(donor=words_bpe(OF_MODEL))
    report, tensors = pair.operate()
    assert all(octets(tensors[name]) == octets(tensor) for name, tensor in pair.model.tensors.items())
    assert counts(report) == {"exact": len(pair.model.ids)}


# T5


def two_words(words, *more):
    """A byte-level tokenizer with further tokens that no merge makes."""
    content = json.loads(words_bpe(words))
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = vocab | {text: len(vocab) + number for number, text in enumerate(more)}
    return json.dumps(content)


@pytest.mark.parametrize(
    ("where", "of_embedding", "of_head"),
    [("no", False, False), ("embed", True, False), ("lm_head", False, True), ("yes", True, True)],
)
def test_t5_prefix_matching_acts_on_the_matrix_it_names(make, where, of_embedding, of_head):
    pair = make(donor=two_words(OF_DONOR, "Ġbemused", "bemused", "Ġx"), model=two_words(OF_MODEL, "Ġbemu", "Ġbe"))
    report, tensors = pair.operate(prefix_match=where)
    number, row = pair.donor.ids["Ġbemused"], pair.model.ids["Ġbemu"]
    assert same_row(tensors, number, pair.model, row, EMBEDDING) is of_embedding
    assert same_row(tensors, number, pair.model, row, HEAD) is of_head
    # Inside of a word nothing longer than its first letter is a token; the space alone is no beginning.
    letter = (pair.donor.ids["bemused"], pair.model, pair.model.ids["b"])
    assert same_row(tensors, *letter, EMBEDDING) is of_embedding
    assert ("prefix" in counts(report)) is of_embedding
    assert not same_row(tensors, pair.donor.ids["Ġx"], pair.model, pair.model.ids["Ġ"])


@pytest.mark.parametrize(
    ("where", "of_embedding", "of_head"),
    [("no", False, False), ("embed", True, False), ("lm_head", False, True), ("yes", True, True)],
)
def test_t5_byte_matching_acts_on_the_matrix_it_names_and_on_ascii_only(make, where, of_embedding, of_head):
    pair = make(model=words_bpe(OF_MODEL), donor=words_unigram([*OF_DONOR]))
    _, tensors = pair.operate(byte_match=where)
    for name, expected in ((EMBEDDING, of_embedding), (HEAD, of_head)):
        assert same_row(tensors, pair.donor.ids["<0x41>"], pair.model, pair.model.ids["A"], name) is expected
        assert same_row(tensors, pair.donor.ids["<0x0A>"], pair.model, pair.model.ids["Ċ"], name) is expected
        # A byte beyond ASCII is the same byte everywhere, and never the character of its number.
        assert same_row(tensors, pair.donor.ids["<0xE9>"], pair.model, pair.model.ids["é"], name)


def test_t5_a_latin_1_character_is_not_the_byte_of_its_number(make):
    pair = make(model=words_unigram(OF_MODEL), donor=two_words(OF_DONOR, "Ã©", "Aé"))
    _, tensors = pair.operate(byte_match="yes")  # the token Ã© is é, whose UTF-8 is C3 A9
    assert not same_row(tensors, pair.donor.ids["Ã©"], pair.model, pair.model.ids["<0xE9>"])
    assert same_row(tensors, pair.donor.ids["é"], pair.model, pair.model.ids["<0xE9>"])  # the byte E9


PIECES = {
    "mean": ([1 / 3] * 3, [1 / 3] * 3),
    "sum": ([1, 1, 1], [1, 1, 1]),
    "weighted_mean": ([1 / 6, 2 / 6, 3 / 6], [3 / 6, 2 / 6, 1 / 6]),
    "first_last": ([0, 0, 1], [1, 0, 0]),
}


@pytest.mark.parametrize("method", PIECES)
def test_t5_subword_weighs_the_last_piece_most_in_the_embedding_and_the_first_in_the_head(make, method):
    pair = make(model=words_bpe(["bem"]), donor=two_words(OF_DONOR, "Ġbemzy", "xyz"))
    _, tensors = pair.operate(approximation_method="subword", subword_method=method)
    for token, pieces in (("Ġbemzy", ("Ġbem", "z", "y")), ("xyz", "xyz")):
        rows = [pair.model.ids[piece] for piece in pieces]
        for name, weights in zip((EMBEDDING, HEAD), PIECES[method], strict=True):
            expected = torch.tensor(weights).double() @ pair.model.tensors[name][rows].double()
            found = tensors[name][pair.donor.ids[token]].double()
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


ADDED = f'"added_tokens": [{json.dumps({"id": 0, "content": "<|abc|>", **SPECIAL})}]'


def test_t5_subword_decodes_what_tokens_stand_for(make):
    """Text of byte-level spellings, bytes that are no text, and special tokens: never the name of a role."""
    pair = make(
        model=words_unigram(OF_MODEL),
        donor=two_words(OF_DONOR, "Ġxyz", "âĤ¬", "âĤ").replace('"added_tokens": []', ADDED),
        roles={"unk_token": "<unk>"},
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|abc|>"}
    (pair.donor.root / "tokenizer_config.json").write_text(json.dumps(settings))
    _, tensors = pair.operate(approximation_method="subword")
    ids, rows = pair.model.ids, pair.model.tensors[EMBEDDING].double()

    def mean(*pieces):
        return rows[[ids[piece] for piece in pieces]].mean(0)

    expected = {
        "Ċ": mean("<0x0A>"),
        "Ġxyz": mean("▁", "x", "y", "z"),
        "D": mean("<0x44>"),
        "âĤ¬": mean("<0xE2>", "<0x82>", "<0xAC>"),  # the euro sign, and its beginning
        "âĤ": mean("<0xE2>", "<0x82>"),
        "<|abc|>": mean("<0x3C>", "<0x7C>", "a", "b", "c", "<0x7C>", "<0x3E>"),
    }
    for token, row in expected.items():
        torch.testing.assert_close(
            tensors[EMBEDDING][pair.donor.ids[token]].double(), row, rtol=1e-6, atol=1e-8, msg=token
        )


def test_t5_a_token_map_decides_before_everything_else(make):
    pair = make()
    name = next(text for text in pair.donor.ids if text in pair.model.ids and len(text) > 3)
    new = next(text for text in pair.donor.ids if text not in pair.model.ids)
    report, tensors = pair.operate(token_map={name: "Ġ", new: "a"})
    assert same_row(tensors, pair.donor.ids[name], pair.model, pair.model.ids["Ġ"])
    assert same_row(tensors, pair.donor.ids[new], pair.model, pair.model.ids["a"])
    assert counts(report)["mapped"] == 2
    for wrong, which in (({"nothing": "a"}, "donor"), ({new: "nothing"}, "model")):
        with pytest.raises(MergekitError, match=f"names 'nothing', which is no token of the {which}"):
            pair.operate("wrong", token_map=wrong)


# T6


def phi(pair):
    """The model as a Phi: its head has a bias."""
    file = pair.model.root / "config.json"
    config = json.loads(file.read_text()) | {"model_type": "phi", "architectures": ["PhiForCausalLM"]}
    rows = pair.model.tensors[HEAD].shape[0]
    pair.model.tensors["lm_head.bias"] = torch.arange(1.0, rows + 1)
    write_model(pair.model.root, pair.model.tensors, config)


@pytest.mark.parametrize("magikarp", [False, True])
def test_t6_head_biases_of_known_tokens_are_kept_and_others_are_zero(make, magikarp):
    pair = make()
    phi(pair)
    _, tensors = pair.operate(magikarp=magikarp, pad_to_multiple_of=64)
    bias = tensors["lm_head.bias"]
    assert bias.shape == (448,)
    expected = torch.zeros(448)
    for own, row in pair.shared:
        expected[own] = row + 1.0
    assert torch.equal(bias, expected)


# Undertrained tokens


def shrink(made, texts, factor=1e-3):
    for text in texts:
        made.tensors[EMBEDDING][made.ids[text]] *= factor
    write_model(made.root, made.tensors, json.loads((made.root / "config.json").read_text()))


@pytest.mark.parametrize("tied", [False, True])
def test_undertrained_tokens_are_found_by_their_norms_whether_tied_or_not(make, tied):
    pair = make(tied=tied, donor_tied=tied)
    shared, new = [f"Ġ{word}" for word in OF_MODEL[40:43]], f"Ġ{OF_DONOR[-1]}"
    shrink(pair.model, shared[:2])  # one percent of 400 rows are four
    shrink(pair.donor, [shared[1], shared[2], new])
    report, tensors = pair.operate(magikarp=True)
    rows = [pair.donor.ids[text] for text in (*shared, new)]
    # Trained in the donor only, or in the model only: approximated; in neither, or new and untrained: zeros.
    assert not same_row(tensors, rows[0], pair.model, pair.model.ids[shared[0]])
    assert tensors[EMBEDDING][rows[0]].norm() > 0.1
    assert not tensors[EMBEDDING][rows[1]].any()
    assert not same_row(tensors, rows[2], pair.model, pair.model.ids[shared[2]])
    assert not tensors[EMBEDDING][rows[3]].any()
    assert counts(report)["zero"] >= 2


def test_tokens_near_unused_rows_are_undertrained(make):
    special = ["<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    pair = make(model=words_bpe(OF_MODEL, special), donor=words_bpe(OF_DONOR))
    unused = [pair.model.ids[text] for text in special]
    word = f"Ġ{OF_MODEL[50]}"
    pair.model.tensors[EMBEDDING][pair.model.ids[word]] = pair.model.tensors[EMBEDDING][unused].mean(0)
    shrink(pair.model, [])
    _, plain = pair.operate("plain")
    _, tensors = pair.operate(magikarp=True)
    assert same_row(plain, pair.donor.ids[word], pair.model, pair.model.ids[word])
    assert not same_row(tensors, pair.donor.ids[word], pair.model, pair.model.ids[word])


# Memory, devices, broken numbers


def test_what_does_not_fit_memory_goes_through_files_and_small_batches_with_the_same_result(make, monkeypatch):
    from mergekit.surgery import matrices

    pair = make()
    _, expected = pair.operate()
    monkeypatch.setattr(matrices.Scratch, "small", property(lambda self: 1000))
    monkeypatch.setattr(matrices.Scratch, "entries", property(lambda self: 3000))
    monkeypatch.setattr(matrices, "_BLOCK", 100)
    made = []
    original = matrices.Stash.__init__
    monkeypatch.setattr(matrices.Stash, "__init__", lambda self, *words: made.append(1) or original(self, *words))
    _, tensors = pair.operate("small")
    assert len(made) >= 6
    assert sorted(path.name for path in pair.root.iterdir()) == ["donor", "model", "out", "small"]
    for name in (EMBEDDING, HEAD):
        torch.testing.assert_close(tensors[name], expected[name], rtol=1e-5, atol=1e-6)


def test_blocks_of_atoms_find_what_one_block_finds(make, monkeypatch):
    from mergekit.surgery import atoms

    pair = make()
    for method in ("omp", "common_interpolation", "stb"):
        _, expected = pair.operate(f"{method}-whole", approximation_method=method, k=8)
        with monkeypatch.context() as patch:
            patch.setattr(atoms, "_MOST", 7)
            _, tensors = pair.operate(method, approximation_method=method, k=8)
        torch.testing.assert_close(tensors[EMBEDDING], expected[EMBEDDING], rtol=1e-5, atol=1e-6)


def test_a_device_gives_the_same_rows(make):
    pair = make()
    for method in ("omp", "common_interpolation", "mp_rope", "stb"):
        _, expected = pair.operate(f"{method}-cpu", approximation_method=method, k=8)
        job = JobOptions(plan=PlanOptions(workers=1), device="cpu")
        _, tensors = pair.operate(method, approximation_method=method, k=8, job=job)
        torch.testing.assert_close(tensors[EMBEDDING], expected[EMBEDDING], rtol=1e-4, atol=1e-6)


def test_broken_numbers_are_refused(make):
    pair = make()
    pair.donor.tensors[EMBEDDING][pair.new[0]] = float("nan")
    shrink(pair.donor, [])
    with pytest.raises(NonFiniteError, match=r"model\.embed_tokens\.weight"), np.errstate(invalid="ignore"):
        pair.operate(approximation_method="landmark_pca")
    assert not (pair.root / "out").exists()


def test_a_plan_reads_no_weight_and_tells_the_counts(pair, monkeypatch):
    def read(*_):
        raise AssertionError("a weight is read")

    for name in ("read", "gather"):
        monkeypatch.setattr(Files, name, read)
    with pytest.raises(AssertionError, match="a weight is read"):
        plan_transplant(str(pair.model.root), str(pair.donor.root), Settings(magikarp=True))
    found = plan_transplant(str(pair.model.root), str(pair.donor.root), Settings())
    assert found.counts[EMBEDDING] == {"exact": 364, "approximated": 36}
    assert found.plan.write_bytes == sum(task.out.nbytes for task in found.plan.tasks) > 0
