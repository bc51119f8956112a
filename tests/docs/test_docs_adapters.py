"""The guide on adapters: its commands run and print what it shows."""

import json
import shutil

from safetensors import safe_open
from test_docs import FENCE, ROOT, options_of, run

PAGE = (ROOT / "docs" / "guides" / "adapters.md").read_text(encoding="utf-8")


def test_its_commands_run_and_say_what_it_shows(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    said, commands = "", 0
    for fence in FENCE.finditer(PAGE):
        options = options_of(fence["options"])
        if "file" in options:
            (tmp_path / options["file"]).write_text(fence["text"], encoding="utf-8")
        elif fence["kind"] == "sh":
            done = run(fence["text"].strip(), tmp_path)
            said, commands = done.stdout + done.stderr, commands + 1
            assert done.returncode == int(options.get("exit", 0)), said
        else:
            assert fence["text"].strip() in said, said
    assert commands == 5
    for folder, rank in (("german", 8), ("three", 24), ("two", 8)):
        settings = json.loads((tmp_path / folder / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(tmp_path / folder / "adapter_model.safetensors", "np") as tensors:
            module = settings["target_modules"][0]
            assert tensors.get_slice(f"base_model.model.{module}.lora_A.weight").get_shape()[0] == rank == settings["r"]
    assert not (tmp_path / "dared").exists()
