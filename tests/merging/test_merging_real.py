"""Merges of models that were really trained, scored on held-out text: the point of it all."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from tiny_checkpoints import merge, recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS, TEXTS = EXAMPLES / "models", EXAMPLES / "text"
EXPERTS = ("de", "es", "fr", "py")
BASE = MODELS / "base"
WINDOW, WINDOWS = 192, 16
TOLERANCE = 0.01  # bits per byte


def everyone(**parameters):
    return [(MODELS / name, parameters or None) for name in EXPERTS]


RECIPES = {
    "task arithmetic": recipe("task_arithmetic", everyone(weight=0.3), base_model=str(BASE)),
    "average": recipe("linear", everyone(weight=1)),
    "ties": recipe("ties", everyone(density=0.2), base_model=str(BASE), parameters={"lambda": 0.8}),
    "slerp base-de": recipe("slerp", [BASE, MODELS / "de"], base_model=str(BASE), parameters={"t": 0.5}),
}


@torch.no_grad()
def bits_per_byte(model, text):
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    step = (len(ids) - WINDOW) // WINDOWS
    batch = torch.stack([ids[number * step : number * step + WINDOW] for number in range(WINDOWS)])
    return model(input_ids=batch, labels=batch).loss.item() / math.log(2)


def score(folder):
    """Bits per byte by domain."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {file.stem: bits_per_byte(model, file.read_bytes()) for file in sorted(TEXTS.glob("*.txt"))}


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Bits per byte by model and domain, printed as a table."""
    root = tmp_path_factory.mktemp("real")
    found = {name: score(MODELS / name) for name in ("base", *EXPERTS)}
    for name, text in RECIPES.items():
        merge(text, root / name)
        found[name] = score(root / name)
    domains = list(found["base"])
    print("\nbits per byte   " + "".join(f"{domain:>8}" for domain in domains))
    for name, row in found.items():
        print(f"{name:<16}" + "".join(f"{row[domain]:8.3f}" for domain in domains))
    return found


def gains(scores, name):
    """Share of each expert's gain over the base that a merge keeps on the expert's own text."""
    return [
        (scores["base"][domain] - scores[name][domain]) / (scores["base"][domain] - scores[domain][domain])
        for domain in EXPERTS
    ]


def test_experts_beat_the_base_on_their_own_text(scores):
    assert all(scores[domain][domain] < scores["base"][domain] - 0.1 for domain in EXPERTS)


@pytest.mark.parametrize("name", ["task arithmetic", "average", "ties"])
def test_a_merge_of_all_keeps_much_of_what_each_learned(scores, name):
    kept = gains(scores, name)
    print(f"{name}: recovery {sum(kept) / len(kept):.1%}, worst {min(kept):.1%}")
    assert sum(kept) / len(kept) > 0.25
    assert all(scores[name][domain] <= scores["base"][domain] + TOLERANCE for domain in EXPERTS)


def test_a_merge_of_base_and_expert_scores_between_both_or_better(scores):
    low, high = sorted((scores["de"]["de"], scores["base"]["de"]))
    assert scores["slerp base-de"]["de"] <= high + TOLERANCE
    assert gains(scores, "slerp base-de")[0] > 0.25
    assert low < high
