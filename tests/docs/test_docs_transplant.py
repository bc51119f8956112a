"""The guide on transplants of tokenizers: its commands run and print what it shows."""

import json

from pages import carry_out
from tokenizers import Tokenizer


def test_its_commands_run_and_give_what_it_says(here):
    assert len(carry_out("guides/tokenizer-transplant.md", here)) == 5
    out = here / "de-with-es"
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 1000
    vocabularies = [Tokenizer.from_file(str(here / name / "tokenizer.json")).get_vocab() for name in (out, "es")]
    assert vocabularies[0] == vocabularies[1]
    (found,) = json.loads((out / "transplant_report.json").read_text())["matrices"].values()
    assert found["rows"]["exact"] > 256
    assert found["held_out"]["cosine"] > 0.5
