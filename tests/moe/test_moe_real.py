"""Mixtures of models that were really trained: they know each expert's domain better than the average does."""

import json
from pathlib import Path

import pytest
import torch
from moe_models import load

from mergekit.merging import merge_recipe
from mergekit.moe import build_moe, check_identity

EXAMPLES = Path(__file__).parents[2] / "examples"
DOMAINS = ("de", "es", "fr", "py")
HALF = 20_000  # bytes of a text: prompts are from the first half, and the second one is held out
WINDOW, WINDOWS, PROMPT, PROMPTS = 192, 24, 97, 200


def texts(domain):
    content = (EXAMPLES / "text" / f"{domain}.txt").read_bytes()
    return content[:HALF], content[HALF:]


@torch.no_grad()
def bits_per_byte(folder):
    """Of held-out text, by domain."""
    model, found = load(folder)
    assert found == {}
    measured = {}
    for domain in DOMAINS:
        _, held_out = texts(domain)
        ids = torch.tensor(list(held_out)).unfold(0, WINDOW, (len(held_out) - WINDOW) // WINDOWS)[:WINDOWS]
        measured[domain] = model(ids, labels=ids).loss.item() / 0.6931471805599453
    return measured


@pytest.fixture(scope="module")
def average(tmp_path_factory):
    """All experts with the same weight: attention and norms of the mixtures."""
    out = tmp_path_factory.mktemp("average") / "average"
    entries = [{"model": str(EXAMPLES / "models" / domain), "parameters": {"weight": 1}} for domain in DOMAINS]
    merge_recipe(json.dumps({"merge_method": "linear", "models": entries}), out)
    return out


def mixture(base, out, **more):
    """Four experts, with the first half of the text of each as prompts.

    Many prompts: `hidden` looks at the last token of each, and a token of these models is a byte.
    """
    experts = []
    for domain in DOMAINS:
        text = texts(domain)[0].decode(errors="ignore")
        prompts = [text[start : start + PROMPT] for start in range(0, PROMPTS * PROMPT, PROMPT)]
        experts.append({"source_model": str(EXAMPLES / "models" / domain), "positive_prompts": prompts})
    return build_moe(json.dumps({"base_model": str(base), "experts": experts, **more}), out)[1]


def test_copies_of_an_expert_are_the_expert(tmp_path):
    folder = str(EXAMPLES / "models" / "de")
    recipe = {"base_model": folder, "gate_mode": "random", "experts": [{"source_model": folder}] * 4}
    _, made = build_moe(json.dumps(recipe), tmp_path / "out")
    identity = check_identity(tmp_path / "out", made)
    assert identity.compared[0].startswith("the mixture as it was written")
    assert identity.difference < 1e-5


def test_the_mixture_beats_the_average_in_its_domains(average, tmp_path, cache):
    """Prints the table; what is right about it is that three of four domains are better, or all of them."""
    rows = {"average": bits_per_byte(average)}
    for mode, experts in (("hidden", 4), ("hidden_avg", 4), ("fitted", 2)):
        made = mixture(average, tmp_path / mode, gate_mode=mode, experts_per_token=experts)
        assert any("no tokenizer and 256 tokens" in notice for notice in made.plan.findings.notices)
        rows[f"{mode}, {experts} of 4"] = bits_per_byte(tmp_path / mode)
    print("\nbits per byte".ljust(19), *DOMAINS, sep="     ")
    for name, row in rows.items():
        print(name.ljust(18), *(f"{row[domain]:.3f}" for domain in DOMAINS), sep="  ")
    better = {
        name: [domain for domain in DOMAINS if row[domain] < rows["average"][domain]] for name, row in rows.items()
    }
    assert len(better["hidden, 4 of 4"]) >= 3
    assert len(better["hidden_avg, 4 of 4"]) >= 3
    assert better["fitted, 2 of 4"] == list(DOMAINS)
    gain = [1 - rows["fitted, 2 of 4"][domain] / rows["average"][domain] for domain in DOMAINS]
    assert sum(gain) / len(gain) > 0.015


def test_experts_of_trained_models_are_what_the_identity_says(average, tmp_path):
    experts = [{"source_model": str(EXAMPLES / "models" / domain)} for domain in DOMAINS]
    recipe = {"base_model": str(average), "gate_mode": "random", "experts": experts}
    _, made = build_moe(json.dumps(recipe), tmp_path / "out")
    identity = check_identity(tmp_path / "out", made)
    assert identity.difference < 1e-5
    assert len(identity.compared) == 4
