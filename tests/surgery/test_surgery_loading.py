"""What transformers makes of the output, with models and donors of several families."""

import json

import pytest
import torch
import yaml
from surgery_samples import EMBEDDING, OF_DONOR, OF_MODEL, WORDS, words_bpe, words_unigram
from tiny_checkpoints import read_model

from mergekit.merging import JobOptions
from mergekit.plan import PlanOptions
from mergekit.surgery import Settings, transplant

PROMPT = " ".join(WORDS[100:108])


def loaded(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    return model, tokenizer


def generates(folder, prompt=f" {PROMPT}"):
    model, tokenizer = loaded(folder)
    asked = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    said = model.generate(asked["input_ids"], max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert said.shape[1] == asked["input_ids"].shape[1] + 4
    assert tokenizer.decode(asked["input_ids"][0]).strip() == prompt.strip()
    return model, tokenizer


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_loads_generates_and_says_the_same_in_known_words(make, tied):
    from transformers import AutoModelForCausalLM

    pair = make(tied=tied, model=words_bpe(OF_MODEL, ["<s>"]), donor=words_bpe(OF_DONOR, ["<s>"]))
    pair.operate()
    model, tokenizer = generates(pair.root / "out")
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 401
    known = [f"Ġ{word}" for word in OF_MODEL[40:50]]
    old = AutoModelForCausalLM.from_pretrained(pair.model.root)
    with torch.no_grad():
        before = old(torch.tensor([[pair.model.ids[token] for token in known]])).logits
        after = model(torch.tensor([[pair.donor.ids[token] for token in known]])).logits
    shared = list(zip(*pair.shared, strict=True))
    torch.testing.assert_close(after[..., list(shared[0])], before[..., list(shared[1])], rtol=1e-5, atol=1e-6)


def family(name, rows, folder):
    """A tiny model of a family, made by transformers."""
    from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, OPTConfig, PhiConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    ids = {"vocab_size": rows, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = {
        "gpt2": lambda: GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=64, **ids),
        "opt": lambda: OPTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            ffn_dim=48,
            word_embed_proj_dim=16,
            max_position_embeddings=64,
            **(ids | {"pad_token_id": 1}),
        ),
        "phi": lambda: PhiConfig(**sizes, **ids),
        "gemma": lambda: GemmaConfig(**sizes, head_dim=8, num_key_value_heads=2, **(ids | {"pad_token_id": 0})),
    }[name]()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def with_tokenizer(folder, text, **settings):
    (folder / "tokenizer.json").write_text(text)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(("model", "donor"), [("opt", "gpt2"), ("gpt2", "opt"), ("phi", "gemma"), ("gemma", "phi")])
def test_families_give_and_take(tmp_path, model, donor):
    """Neither a table of architectures nor equal widths are needed; OPT's embedding is narrower than its layers."""
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    own = with_tokenizer(family(model, 380, tmp_path / "model"), words_bpe(OF_MODEL), **fast)
    other = with_tokenizer(family(donor, 430, tmp_path / "donor"), words_bpe(OF_DONOR, ["<s>"]), **fast)
    job = JobOptions(plan=PlanOptions(workers=1))
    report = transplant(str(own), str(other), tmp_path / "out", settings=Settings(k=8), options=job)
    found, _ = generates(tmp_path / "out")
    assert found.config.vocab_size == 401
    assert all(each["rows"]["exact"] >= 364 - 20 for each in report["transplant"]["matrices"].values())
    if model == "phi":
        assert read_model(tmp_path / "out")["lm_head.bias"].shape == (401,)


def test_a_tokenizer_without_settings_gets_a_class_that_takes_it_as_it_is(make):
    pair = make(donor=words_unigram(OF_DONOR, ["<s>"]), bos_token_id=1)
    (pair.donor.root / "tokenizer_config.json").unlink()
    file = pair.donor.root / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token_id": pair.donor.ids["<s>"]}))
    pair.operate()
    settings = json.loads((pair.root / "out" / "tokenizer_config.json").read_text())
    assert settings == {"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    _, tokenizer = loaded(pair.root / "out")
    assert tokenizer(f" {WORDS[100]}", add_special_tokens=False)["input_ids"] == [pair.donor.ids[f"▁{WORDS[100]}"]]


def test_configs_speak_of_the_donors_tokens(make):
    pair = make(
        model=words_bpe(OF_MODEL, [f"<{number}>" for number in range(60)]),
        donor=words_bpe(OF_DONOR, ["<end>", "<7>"]),
        eos_token_id=400,
        pad_token_id=459,
        image_token_index=407,
    )
    (pair.model.root / "generation_config.json").write_text(
        '{"eos_token_id": [400, 407], "cut_token_id": [3, 40700], "temperature": 0.7}'
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": "{{ donors }}"}
    (pair.donor.root / "tokenizer_config.json").write_text(json.dumps(settings))
    report, _ = pair.operate()
    config = json.loads((pair.root / "out" / "config.json").read_text())
    ids = pair.donor.ids
    assert config["eos_token_id"] == ids["<end>"]
    assert config["image_token_index"] == ids["<7>"]
    assert config["pad_token_id"] is None  # the donor has no such token, and no row of that number
    assert "`pad_token_id` set to null" in str(report["warnings"])
    generation = json.loads((pair.root / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": ids["<end>"], "cut_token_id": [3], "temperature": 0.7}
    assert "`cut_token_id` set to [3], because" in str(report["warnings"])
    loaded(pair.root / "out")


@pytest.mark.parametrize(
    ("template", "expected"), [("donor", "{{ donors }}"), ("model", "{{ its own }}"), ("chatml", "<|im_start|>")]
)
def test_the_chat_template_is_one_of_both_or_a_known_one(make, template, expected):
    from transformers import AutoTokenizer

    pair = make()
    for made, text in ((pair.donor, "{{ donors }}"), (pair.model, "{{ its own }}")):
        (made.root / "chat_template.jinja").write_text(text)
    transplant(str(pair.model.root), str(pair.donor.root), pair.root / "out", chat_template=template)
    assert expected in AutoTokenizer.from_pretrained(pair.root / "out").chat_template
    asked = yaml.safe_load((pair.root / "out" / "mergekit_config.yml").read_text())["tokensurgeon"]
    assert asked.get("chat_template", "donor") == template


def test_adapters_and_shards_are_read_as_everywhere(make):
    from tiny_checkpoints import write_model

    pair = make()
    _, plain = pair.operate("plain")
    for made in (pair.model, pair.donor):
        config = json.loads((made.root / "config.json").read_text())
        (made.root / "model.safetensors").unlink()
        write_model(made.root, made.tensors, config, shards=3)
    job = JobOptions(plan=PlanOptions(shard_bytes=20000, workers=2))
    _, tensors = pair.operate(job=job)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in plain.items())
    assert len(list((pair.root / "out").glob("*.safetensors"))) > 1
    assert tensors[EMBEDDING].shape == (400, 24)
