"""The guide on vocabularies: its commands run, and the model has the tokens that it says."""

import json
import shutil

from test_docs import FENCE, ROOT, options_of, run
from tokenizers import Tokenizer

PAGE = (ROOT / "docs" / "guides" / "vocabularies.md").read_text(encoding="utf-8")


def test_its_commands_run_and_give_what_it_says(tmp_path):
    shutil.copytree(ROOT / "examples" / "models", tmp_path / "examples" / "models")
    commands = 0
    for fence in FENCE.finditer(PAGE):
        options = options_of(fence["options"])
        if "file" in options:
            (tmp_path / options["file"]).write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh":
            done = run(fence["text"].strip(), tmp_path)
            assert done.returncode == 0, done.stderr
            commands += 1
    assert commands == 3
    tokenizer = Tokenizer.from_file(str(tmp_path / "merged" / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>hi").ids == [256, 104, 105]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == 258
    assert "<|im_start|>" in (tmp_path / "merged" / "chat_template.jinja").read_text()
