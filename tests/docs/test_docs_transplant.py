"""The guide on transplants of tokenizers: its commands run and print what it shows."""

import json
import shutil

from test_docs import FENCE, ROOT, options_of, run
from tokenizers import Tokenizer

PAGE = (ROOT / "docs" / "guides" / "tokenizer-transplant.md").read_text(encoding="utf-8")


def test_its_commands_run_and_give_what_it_says(tmp_path):
    for folder in ("models", "text"):
        shutil.copytree(ROOT / "examples" / folder, tmp_path / "examples" / folder)
    said, commands = "", 0
    for fence in FENCE.finditer(PAGE):
        options = options_of(fence["options"])
        if "file" in options:
            (tmp_path / options["file"]).write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh":
            done = run(fence["text"].strip(), tmp_path)
            said, commands = done.stdout + done.stderr, commands + 1
            assert done.returncode == 0, said
        else:
            assert fence["text"].strip() in said
    assert commands == 5
    out = tmp_path / "de-with-es"
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 1000
    vocabularies = [Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).get_vocab() for name in (out, "es")]
    assert vocabularies[0] == vocabularies[1]
    (found,) = json.loads((out / "transplant_report.json").read_text())["matrices"].values()
    assert found["rows"]["exact"] > 256
    assert found["held_out"]["cosine"] > 0.5
