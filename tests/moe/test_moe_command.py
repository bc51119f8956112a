"""The commands `mergekit moe` and `mergekit yaml` with mixture recipes."""

import json
import re

import pytest
import yaml
from click.testing import CliRunner
from moe_models import load, tensors

from mergekit.cli.main import commands

GUIDES = {
    "moe_hidden.moe.yml": """\
base_model: models/base

gate_mode: hidden  # Use hidden states to route to experts
dtype: bfloat16
experts:
  - source_model: models/a
    positive_prompts:
      - "Write code"
      - "Debug this function"
      - "Implement an algorithm"
    negative_prompts:
      - "Tell me a story"
      - "Explain history"

  - source_model: models/b
    positive_prompts:
      - "Write a story"
      - "Be creative"
      - "Imagine"
    negative_prompts:
      - "Write code"
      - "Calculate"
""",
    "moe_as_merge_method.yml": """\
# a published guide gives this to mergekit-yaml
merge_method: moe
base_model: models/base
experts:
  - source_model: models/a
    positive_prompts:
      - "math"
      - "calculate"
  - source_model: models/b
    positive_prompts:
      - "chat"
      - "conversation"
  - source_model: models/c
    positive_prompts:
      - "code"
      - "python"
dtype: bfloat16
""",
}


@pytest.fixture
def workshop(dense, tmp_path, monkeypatch, cache):
    """A folder with models and the recipes of guides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for seed, name in enumerate(("base", "a", "b", "c")):
        (tmp_path / "models" / name).symlink_to(dense("mistral", seed))
    for name, text in GUIDES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


def record(result):
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("command", "recipe", "experts"), [("moe", "moe_hidden.moe.yml", 2), ("yaml", "moe_as_merge_method.yml", 3)]
)
def test_what_guides_print_gives_models_that_generate(workshop, command, recipe, experts):
    import transformers

    result = run(command, recipe, "out")
    assert result.exit_code == 0, result.stderr
    model, missed = load(workshop / "out")
    assert missed == {}
    assert model.config.num_local_experts == experts
    assert {str(entries.dtype) for entries in tensors(workshop / "out").values()} == {"torch.bfloat16"}
    tokenizer = transformers.AutoTokenizer.from_pretrained("out", local_files_only=True)
    asked = tokenizer("Write", return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert said.shape[1] == asked["input_ids"].shape[1] + 4


def test_it_leaves_what_merges_leave(workshop):
    assert run("moe", "moe_hidden.moe.yml", "out", "--quiet").exit_code == 0
    names = {file.name for file in (workshop / "out").iterdir()}
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert names >= wanted | {"README.md", "merge_report.json", "mergekit_config.yml", "mergekit_moe_config.yml"}
    for name in ("mergekit_config.yml", "mergekit_moe_config.yml"):
        assert (workshop / "out" / name).read_text() == GUIDES["moe_hidden.moe.yml"]
    base = workshop / "models" / "base"
    assert (workshop / "out" / "tokenizer_config.json").read_text() == (base / "tokenizer_config.json").read_text()
    card = (workshop / "out" / "README.md").read_text()
    assert "mixture of experts" in card
    assert all(f"* `models/{name}`" in card for name in ("base", "a", "b"))
    report = json.loads((workshop / "out" / "merge_report.json").read_text())
    assert (report["method"], report["options"]["architecture"]) == ("moe", "mixtral")
    assert run("verify", "out").exit_code == 0


@pytest.mark.parametrize("flags", [(), ("--fused", "--random-seed", "5")], ids=str)
@pytest.mark.parametrize("mode", ["hidden", "random"])
def test_a_mixture_is_made_again_byte_by_byte(workshop, mode, flags):
    recipe = workshop / "moe_hidden.moe.yml"
    recipe.write_text(recipe.read_text().replace("gate_mode: hidden", f"gate_mode: {mode}"))
    assert run("moe", recipe, "out", "--quiet", *flags).exit_code == 0
    verified = " ".join(run("verify", "out").output.split())
    assert ("which only `mergekit reproduce` does" in verified) == (mode == "hidden")
    assert ("distances of about" in verified) == (mode == "random")
    again = run("reproduce", "out", "--json")
    assert again.exit_code == 0, again.stderr
    assert "model.safetensors" in record(again)["files"]


@pytest.mark.parametrize("command", [["check"], ["plan"], ["yaml", "--plan"]], ids=" ".join)
def test_mixtures_are_looked_at_before_they_are_built(workshop, command):
    recipe = workshop / "moe_hidden.moe.yml"
    result = run(*command, recipe, "out")
    assert result.exit_code == 0, result.stderr
    assert "moe" in result.stdout.splitlines()[0]
    assert not (workshop / "out").exists()
    (workshop / "full").mkdir()
    (workshop / "full" / "letter.txt").touch()
    recipe.write_text(recipe.read_text().replace("gate_mode: hidden", "gate_mode: hiden"))
    wrong = run(*command, recipe, "full")
    assert wrong.exit_code == 3
    assert "`hiden` is not a gate mode" in wrong.stderr
    assert "the output folder is not empty" in wrong.stderr


def test_the_card_of_a_fused_mixture_names_every_expert(workshop):
    assert run("moe", "moe_hidden.moe.yml", "out", "--fused").exit_code == 0
    card = (workshop / "out" / "README.md").read_text()
    assert all(f"* `models/{name}`" in card for name in ("base", "a", "b"))
    left = {
        entry["model"]: entry for entry in json.loads((workshop / "out" / "merge_report.json").read_text())["left_over"]
    }
    assert not any("mlp" in name for number in (1, 2) for name in left[number]["tensors"])


def test_a_plan_writes_nothing(workshop):
    result = run("moe", "moe_hidden.moe.yml", "out", "--plan")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"^output +out \(not written\)$", result.stdout, re.M)
    planned = record(run("yaml", "moe_as_merge_method.yml", "out", "--plan", "--json"))["plan"]
    named = {entry["name"] for entry in planned["tensors"]}
    assert "model.layers.1.block_sparse_moe.experts.2.w3.weight" in named
    assert not (workshop / "out").exists()
    assert not (workshop / "gates").exists()


def test_json_says_what_was_made_and_what_was_compared(workshop):
    result = run("moe", "moe_hidden.moe.yml", "out", "--check-identity", "--json")
    assert result.exit_code == 0
    found = record(result)
    assert (found["ok"], found["architecture"]) == (True, "MixtralForCausalLM")
    assert found["identity"]["holds"] is True
    assert len(found["identity"]["compared"]) == 2
    assert "tensors" not in found["report"]


def test_a_mixture_that_computes_otherwise_ends_with_an_exit_code_of_its_own(dense, tmp_path):
    llama = str(dense("llama"))
    recipe = {"base_model": llama, "gate_mode": "random", "architecture": "olmoe"}
    recipe["experts"] = [{"source_model": llama}] * 2
    (tmp_path / "moe.yml").write_text(yaml.safe_dump(recipe))
    result = run("moe", tmp_path / "moe.yml", tmp_path / "out", "--check-identity", "--allow-inexact")
    assert result.exit_code == 9
    assert "the mixture is not its models: logits differ by" in result.stderr
    assert (tmp_path / "out" / "config.json").exists()


def test_mistakes_are_told_with_their_lines(workshop):
    text = GUIDES["moe_hidden.moe.yml"].replace("gate_mode", "gatemode").replace("models/b\n", "/no/where\n")
    (workshop / "wrong.yml").write_text(text)
    result = run("moe", "wrong.yml", "out", "--json")
    assert result.exit_code == 3
    problems = record(result)["error"]["problems"]
    assert [problem["line"] for problem in problems] == [3, 15]
    assert problems[0]["hint"] == "`gate_mode`"
    assert run("moe", "moe_hidden.moe.yml", "models/base").exit_code == 5


def test_the_same_bytes_come_out_on_any_number_of_threads(workshop):
    recipe = yaml.safe_load(GUIDES["moe_hidden.moe.yml"])
    recipe["experts"][0]["noise_scale"] = 0.1
    (workshop / "moe.yml").write_text(yaml.safe_dump(recipe))
    for threads in (1, 3):
        assert run("moe", "moe.yml", f"out{threads}", "-j", threads, "--random-seed", 7).exit_code == 0
    one, other = (workshop / f"out{threads}" / "model.safetensors" for threads in (1, 3))
    assert one.read_bytes() == other.read_bytes()


def test_shards_hold_the_same_tensors(workshop):
    assert run("moe", "moe_hidden.moe.yml", "whole").exit_code == 0
    assert run("moe", "moe_hidden.moe.yml", "cut", "--out-shard-size", "40KB").exit_code == 0
    assert len(list((workshop / "cut").glob("model-*.safetensors"))) > 1
    assert load(workshop / "cut")[1] == {}


def test_torch_is_asked_for_by_name_where_it_is_missing(workshop, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "mergekit.moe.network.find_spec", lambda name: None if name in ("torch", "transformers") else real(name)
    )
    result = run("moe", "moe_hidden.moe.yml", "out")
    assert result.exit_code == 4
    assert "torch and transformers is not installed" in result.stderr
    assert 'try pip install "mergekit[torch]" transformers' in result.stderr
    recipe = yaml.safe_load(GUIDES["moe_hidden.moe.yml"]) | {"gate_mode": "cheap_embed"}
    (workshop / "cheap.yml").write_text(yaml.safe_dump(recipe))
    assert run("moe", "cheap.yml", "out").exit_code == 0


def test_python_programs_build_mixtures_with_the_function_that_merges(workshop):
    import mergekit

    report = mergekit.merge_models("moe_as_merge_method.yml", "out")
    assert report["options"]["architecture"] == "mixtral"
    assert load(workshop / "out")[1] == {}
