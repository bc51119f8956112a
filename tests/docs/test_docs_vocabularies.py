"""The guide on vocabularies: its commands run, and the model has the tokens that it says."""

import json

from pages import carry_out
from tokenizers import Tokenizer


def test_its_commands_run_and_give_what_it_says(here):
    assert len(carry_out("guides/vocabularies.md", here)) == 3
    tokenizer = Tokenizer.from_file(str(here / "merged" / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>hi").ids == [256, 104, 105]
    assert json.loads((here / "merged" / "config.json").read_text())["vocab_size"] == 258
    assert "<|im_start|>" in (here / "merged" / "chat_template.jinja").read_text()
