"""`mergekit tokensurgeon` and `mergekit-tokensurgeon`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from surgery_samples import EMBEDDING, HEAD
from tiny_checkpoints import octets, read_model

from mergekit.cli.main import commands
from mergekit.cli.tokensurgeon import METHODS
from mergekit.surgery import APPROXIMATIONS

SOURCES = Path(__file__).parents[2] / "src"
START = (
    "import sys; sys.argv[0] = 'mergekit-tokensurgeon'; "
    "from mergekit.cli.main import main_tokensurgeon; main_tokensurgeon()"
)


def spawn(*words, seed="0"):
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONHASHSEED": seed, "NO_COLOR": "1"}
    line = [sys.executable, "-c", START, *map(str, words)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def run(pair, tmp_path):
    """The command with the model and the donor before its words."""
    models = [str(pair.model.root), str(pair.donor.root)]
    return lambda *words: CliRunner().invoke(commands, ["tokensurgeon", *models, *map(str, words)])


def test_the_command(pair, tmp_path):
    out = tmp_path / "out"
    done = spawn(pair.model.root, pair.donor.root, out, "-k", 8)
    assert done.returncode == 0, done.stderr
    assert f"note: `{EMBEDDING}`: 364 rows as in the model, 36 rows approximated" in done.stderr
    assert f"{HEAD}: 72 known tokens, held out and approximated" in done.stdout
    assert done.stdout.splitlines()[0].split()[:2] == ["tensors", "12"]
    asked = yaml.safe_load((out / "mergekit_config.yml").read_text())["tokensurgeon"]
    assert asked == {
        "model": str(pair.model.root),
        "donor": str(pair.donor.root),
        "approximation_method": "omp",
        "k": 8,
    }
    card = (out / "README.md").read_text()
    assert "tokenizer transplant" in card
    assert str(pair.donor.root) in card
    report = json.loads((out / "merge_report.json").read_text())
    assert report["method"] == "tokensurgeon"
    assert [parent["model"] for parent in report["parents"]] == [str(pair.model.root), str(pair.donor.root)]
    found = json.loads((out / "transplant_report.json").read_text())
    assert found["matrices"][EMBEDDING]["rows"] == {"exact": 364, "approximated": 36}
    assert 0.5 < found["matrices"][HEAD]["held_out"]["cosine"] <= 1
    assert len(found["matrices"][HEAD]["held_out"]["worst"]) == 5


@pytest.mark.parametrize("method", ["omp", "john_hewitt"])
def test_bytes_do_not_depend_on_the_hash_seed(pair, tmp_path, method):
    for seed in "01":
        assert spawn(pair.model.root, pair.donor.root, tmp_path / seed, "-a", method, seed=seed).returncode == 0
    first, again = (read_model(tmp_path / seed) for seed in "01")
    assert len({(tmp_path / seed / "transplant_report.json").read_bytes() for seed in "01"}) == 1
    assert {name: octets(tensor) for name, tensor in first.items()} == {
        name: octets(tensor) for name, tensor in again.items()
    }


def test_every_flag_of_others_is_accepted(run, tmp_path):
    words = ["-c", "-w", "barycentric", "-s", "first_last", "-pm", "lm_head", "-bm", "embed", "--magikarp"]
    words += ["-nvn", "0.1", "-nvs", "0.5", "--batch-size", "0", "--random-seed", "3", "--no-write-model-card"]
    words += ["--trust-remote-code", "--lora-merge-cache", "x", "--no-copy-tokenizer", "-j", "1", "--quiet", "-nc"]
    done = run(tmp_path / "out", "-a", "common_interpolation", *words, "--donor-padding")
    assert (done.exit_code, done.stdout) == (0, "")
    asked = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())["tokensurgeon"]
    assert asked["byte_match"] == "embed"
    assert asked["seed"] == 3
    assert "cosine_similarity" not in asked
    assert not (tmp_path / "out" / "README.md").exists()


def test_json_holds_the_quality_and_nothing_else_is_printed(run, tmp_path):
    done = run(tmp_path / "out", "--json", "-a", "landmark_pca", "--held-out", 10)
    record = json.loads(done.stdout)
    assert record["ok"]
    held = record["report"]["transplant"]["matrices"][EMBEDDING]["held_out"]
    assert (held["method"], held["tokens"]) == ("landmark_pca", 10)
    assert run(tmp_path / "none", "--held-out", 0, "--json").exit_code == 0
    assert (
        json.loads((tmp_path / "none" / "transplant_report.json").read_text())["matrices"][EMBEDDING]["held_out"]
        is None
    )


def test_a_plan_writes_nothing(run, tmp_path):
    done = run(tmp_path / "out", "--plan")
    assert "364 rows as in the model, 36 rows approximated" in done.stderr
    assert "(not written)" in done.stdout
    assert not (tmp_path / "out").exists()
    record = json.loads(run(tmp_path / "out", "--plan", "--json").stdout)
    sizes = {each["name"]: each["shape"] for each in record["plan"]["tensors"]}
    assert sizes[EMBEDDING] == [400, 24]


def test_methods_are_compared_on_the_same_known_tokens(run, tmp_path, pair):
    before = sorted(pair.root.iterdir())
    done = run("--compare", "zero,omp,mean")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == f"{EMBEDDING}: 72 known tokens, held out and approximated"
    assert [line.split()[0] for line in lines[2:5]] == ["omp", "mean", "zero"]
    assert lines[5].startswith("worst of omp: ")
    assert f"{tmp_path / 'out'} is not written" in run(tmp_path / "out", "--compare", "mean").stderr
    record = json.loads(run("--compare", "all", "--json").stdout)
    assert len(record["methods"]) == 2 * len(METHODS)
    cosines = {each["method"]: each["cosine"] for each in record["methods"] if each["tensor"] == EMBEDDING}
    assert cosines["omp"] > cosines["common_interpolation"] > cosines["mean"] > -0.1
    # Known tokens are not cut into themselves.
    assert cosines["subword"] < 0.5
    assert sorted(pair.root.iterdir()) == before


def test_all_methods_can_be_asked_for():
    assert set(METHODS) == APPROXIMATIONS.keys()


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        ((), 2, "Missing argument 'OUT_PATH'"),
        (("--json",), 2, '"type": "UsageError"'),
        (("--compare", "omp,ompp"), 2, "unknown method `ompp`"),
        (("out", "-k", "0"), 2, "0 is not in the range"),
        (("out", "-a", "best"), 2, "'best' is not one of"),
        (("out", "--no-safe-serialization"), 2, "pickles are not written"),
        (("--compare", "omp", "--held-out", "0"), 4, "too few tokens"),
        (("out", "--chat-template", "chatmll"), 3, "unknown chat template `chatmll`"),
        (("out", "--device", "warp"), 8, "unknown device `warp`"),
        (("out", "--max-memory", "1MB"), 7, "--max-memory"),
    ],
)
def test_mistakes(run, words, code, what, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.exit_code == code
    assert what in done.output
    assert not any(tmp_path.iterdir())


def test_models_that_are_not_there(pair, tmp_path):
    for words in ((tmp_path / "no", pair.donor.root), (pair.model.root, tmp_path / "no")):
        done = CliRunner().invoke(commands, ["tokensurgeon", *map(str, words), str(tmp_path / "out")])
        assert done.exit_code == 3
        assert "there is no such folder" in done.output


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{a: [}", "not YAML or JSON"),
        ("[a]", "expected a mapping"),
        ("{a: 1}", "expected a mapping"),
        ("{zq: a}", "'zq'"),
    ],
)
def test_wrong_token_maps(run, tmp_path, text, what):
    (tmp_path / "map.yml").write_text(text)
    done = run(tmp_path / "out", "--token-map", tmp_path / "map.yml")
    assert done.exit_code in (2, 4)
    assert what in done.output


def test_an_output_that_is_there_is_not_touched(run, tmp_path):
    out = tmp_path / "out"
    assert run(out).exit_code == 0
    kept = (out / "merge_report.json").read_bytes()
    assert run(out).exit_code == 5
    assert (out / "merge_report.json").read_bytes() == kept
    assert run(out, "--overwrite", "-a", "mean").exit_code == 0
    assert (out / "merge_report.json").read_bytes() != kept


@pytest.mark.parametrize("flags", [("-k", "8"), ("--approximation-method", "stb", "--random-seed", "3"), ("--k", "4")])
def test_a_transplant_is_made_again_byte_by_byte(run, tmp_path, flags):
    out = tmp_path / "out"
    assert run(out, "--quiet", *flags).exit_code == 0
    verified = CliRunner().invoke(commands, ["verify", str(out)])
    assert verified.exit_code == 0
    assert "which only `mergekit reproduce` does again" in " ".join(verified.output.split())
    again = CliRunner().invoke(commands, ["reproduce", str(out), "--json"])
    assert again.exit_code == 0, again.output
    assert {"model.safetensors", "tokenizer.json", "transplant_report.json"} <= set(json.loads(again.stdout)["files"])


@pytest.mark.parametrize("told", [{"k": "many"}, {"cosine": True}, {"approximation_method": 3}])
def test_a_report_that_was_edited_is_refused(run, tmp_path, told):
    out = tmp_path / "out"
    assert run(out, "--quiet").exit_code == 0
    report = json.loads((out / "merge_report.json").read_text())
    report["options"]["tokensurgeon"] |= told
    (out / "merge_report.json").write_text(json.dumps(report))
    again = CliRunner().invoke(commands, ["reproduce", str(out)])
    assert again.exit_code == 9
    assert "does not tell how to merge again" in again.stderr
