"""The guide on adapters: its commands run, and say what it shows."""

import json

from pages import carry_out
from safetensors import safe_open


def test_its_commands_run_and_say_what_it_shows(here):
    assert len(carry_out("guides/adapters.md", here)) == 5
    for folder, rank in (("german", 8), ("three", 24), ("two", 8)):
        settings = json.loads((here / folder / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(here / folder / "adapter_model.safetensors", "np") as tensors:
            module = settings["target_modules"][0]
            assert tensors.get_slice(f"base_model.model.{module}.lora_A.weight").get_shape()[0] == rank == settings["r"]
    assert not (here / "dared").exists()
