"""``mergekit reproduce``."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from mergekit.cli.main import commands


def reproduce(*words):
    return CliRunner().invoke(commands, ["reproduce", *map(str, words)])


def answer_of(*words):
    return json.loads(reproduce(*words, "--json").stdout)


@pytest.fixture
def merged(bench):
    assert bench.run().exit_code == 0
    return bench.out


def left_beside(out):
    return sorted(path.name for path in out.parent.iterdir() if "reproduced" in path.name)


def swap(out, old, new):
    """Other text of the same length in the header."""
    file = out / "model.safetensors"
    assert len(old) == len(new)
    file.write_bytes(file.read_bytes().replace(old, new, 1))


def overwrite(out, nbytes=4):
    """Change the last bytes of the weights, and nothing else."""
    file = out / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-nbytes] + np.float32(7).tobytes() * (nbytes // 4))


def test_every_byte_is_the_same(merged):
    result = reproduce(merged)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith(f"the same  {merged}\n")
    assert "model.safetensors" in result.stdout
    assert "config.json" in result.stdout
    assert left_beside(merged) == []


def test_in_json(merged):
    found = answer_of(merged)
    assert (found["ok"], found["tensors"], found["changes"]) == (True, 21, [])
    assert {"model.safetensors", "config.json", "mergekit_config.yml"} <= set(found["files"])
    assert not {"merge_report.json", "README.md"} & set(found["files"])


@pytest.mark.parametrize(
    "flags",
    [
        ("--out-shard-size", "2kB"),
        ("--random-seed", "7"),
        ("--no-copy-tokenizer",),
        ("--no-write-model-card", "--num-threads", "1"),
    ],
    ids=lambda flags: flags[0],
)
def test_options_that_decide_bytes_are_known(bench, flags):
    bench.write(extra="dtype: bfloat16\n")
    if "--random-seed" in flags:
        text = bench.recipe.read_text().replace("merge_method: linear", "merge_method: dare_linear")
        bench.recipe.write_text(f"{text}base_model: {bench.models / 'a'}\nparameters: {{density: 0.5}}\n")
    assert bench.run(*flags).exit_code == 0
    result = reproduce(bench.out)
    assert result.exit_code == 0, result.stderr


def test_cropped_vocabularies_are_known(bench):
    bench.write("a", "c")
    assert bench.run("--unsafe-truncate-embeddings").exit_code == 0
    assert reproduce(bench.out).exit_code == 0


def computed_by(out, name, version="1.0"):
    """Let the report say that something else computed."""
    report = json.loads((out / "merge_report.json").read_text())
    report["device"] = {"name": name, "version": version, "devices": []}
    (out / "merge_report.json").write_text(json.dumps(report))


def test_a_merge_of_torch_is_reproduced_by_torch(bench):
    bench.write(extra="dtype: float32\n")
    assert bench.run("--device", "cpu,cpu").exit_code == 0
    found = answer_of(bench.out)
    assert (found["ok"], found["changes"]) == (True, [])


def test_another_device_is_taken_only_on_request(bench):
    assert bench.run("--device", "cpu").exit_code == 0
    (change,) = answer_of(bench.out, "--device", "kernels").get("changes") or [""]
    assert change.startswith(f"`torch cpu` ({torch.__version__}) computed then, and `kernels` (")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_any_more_is_named_with_what_to_do(merged):
    computed_by(merged, "torch cuda")
    result = reproduce(merged)
    assert result.exit_code == 8
    assert "this model was computed by `torch cuda`: device `cuda` is not there" in result.stderr
    assert "`--device cpu` or `--device kernels`" in result.stderr
    again = reproduce(merged, "--device", "kernels")
    assert again.exit_code == 0
    assert "`torch cuda` (1.0) computed then, and `kernels`" in again.stderr
    assert left_beside(merged) == []


def test_other_software_is_told(merged):
    computed_by(merged, "kernels", "0.1")
    assert "`kernels` (0.1) computed then" in reproduce(merged).stderr


def test_a_changed_tensor_is_named_with_what_changed(merged):
    overwrite(merged, 8)
    result = reproduce(merged)
    assert (result.exit_code, result.stdout) == (9, "")
    assert "differs in 2 of " in result.stderr
    assert ", by at most " in result.stderr
    assert str(merged) in result.stderr
    problems = answer_of(merged)["error"]["problems"]
    assert len(problems) == 1
    assert left_beside(merged) == []


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda out: (out / "config.json").write_text('{"model_type": "llama"}'), "`config.json` differs: other"),
        (lambda out: (out / "config.json").unlink(), "`config.json` is not there"),
        (lambda out: (out / "model.safetensors").unlink(), "`model.safetensors` is not there"),
        (lambda out: (out / "model.safetensors").write_bytes(b"\xff" * 80), "the header claims"),
        (lambda out: shutil.copy(out / "model.safetensors", out / "x.safetensors"), "`x.safetensors` is no file of"),
        (lambda out: swap(out, b'"pt"', b'"np"'), "the header of the file differs: `format` is 'np', not 'pt'"),
        (lambda out: swap(out, b"norm.weight", b"norm.height"), "the file holds other tensors"),
        (lambda out: save_file({"a": np.ones(3, np.int8)}, out / "model.safetensors"), "`a` is no tensor of this"),
    ],
)  # fmt: skip
def test_whatever_differs_is_told(merged, edit, what):
    edit(merged)
    result = reproduce(merged)
    assert result.exit_code == 9
    assert what in result.stderr


def test_against_another_folder(merged, tmp_path):
    other = tmp_path / "copy"
    shutil.copytree(merged, other)
    overwrite(merged)
    found = answer_of(merged, "--against", other)
    assert (found["ok"], found["folder"]) == (True, str(other))
    assert reproduce(other, "--against", merged).exit_code == 9


def test_models_that_changed_are_named_first(bench, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(bench.models, own)
    bench.recipe.write_text(bench.recipe.read_text().replace(str(bench.models), str(own)))
    assert bench.run().exit_code == 0
    tensors = load_file(own / "a/model.safetensors")
    save_file({**tensors, "model.norm.bias": np.ones(3, np.float32)}, own / "a/model.safetensors")
    result = reproduce(bench.out)
    assert result.exit_code == 9
    assert f"{own / 'a'}: the file has " in result.stderr
    assert result.stderr.index("the file has") < result.stderr.index("the merge cannot be repeated")
    shutil.rmtree(own / "b")
    result = reproduce(bench.out)
    assert result.exit_code == 9
    assert f"{own / 'b'}: the file is not there any more" in result.stderr
    assert left_beside(bench.out) == []


def test_a_model_whose_entries_changed_shows_in_every_tensor_it_has(bench, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(bench.models, own)
    bench.recipe.write_text(bench.recipe.read_text().replace(str(bench.models), str(own)))
    assert bench.run().exit_code == 0
    file = own / "a/model.safetensors"
    head = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    raw = np.frombuffer(file.read_bytes()[head:], np.float32) * np.float32(2)
    file.write_bytes(file.read_bytes()[:head] + raw.tobytes())
    result = reproduce(bench.out)
    assert result.exit_code == 9
    assert result.stderr.count(" differs in ") == 20
    assert "1 more tensors differ, of 21 in all" in result.stderr


def test_raw_checkpoints(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        draw = torch.Generator().manual_seed(seed)
        state = {"w": torch.randn(40, 8, generator=draw), "steps": torch.tensor(seed)}
        torch.save({"model": state, "epoch": seed}, tmp_path / f"{name}.pt")
    recipe, out = tmp_path / "raw.yml", tmp_path / "out"
    models = "".join(f"- {{model: {tmp_path / name}.pt, parameters: {{weight: 0.5}}}}\n" for name in "ab")
    recipe.write_text(f"merge_method: linear\nmodels:\n{models}")
    command = ["pytorch", str(recipe), str(out), "--integers", "base", "--out-shard-size", "1kB"]
    assert CliRunner().invoke(commands, command).exit_code == 0
    assert reproduce(out).exit_code == 0
    found = CliRunner().invoke(commands, ["verify", str(out)])
    assert (found.exit_code, found.stderr) == (0, "")
    assert "distances of about 16 tensors" in found.stdout
    assert "config.json" not in found.stdout
    shard = sorted(out.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    for command in ("verify", "reproduce"):
        assert CliRunner().invoke(commands, [command, str(out)]).exit_code == 9


def test_a_raw_merge_into_a_file_verifies(tmp_path):
    save_file({"w": np.ones((4, 4), np.float32)}, tmp_path / "a.safetensors")
    recipe, out = tmp_path / "raw.yml", tmp_path / "out.safetensors"
    recipe.write_text(
        f"merge_method: linear\nmodels: [{{model: {tmp_path}/a.safetensors, parameters: {{weight: 2}}}}]\n"
    )
    assert CliRunner().invoke(commands, ["pytorch", str(recipe), str(out)]).exit_code == 0
    assert CliRunner().invoke(commands, ["verify", str(out)]).exit_code == 0
    save_file({"w": np.full((4, 4), np.nan, np.float32)}, out)
    result = CliRunner().invoke(commands, ["verify", str(out)])
    assert result.exit_code == 9
    assert "16 of 16 entries of `w` are infinite or not a number" in result.stderr


def test_methods_in_files_are_run_only_if_told(bench):
    method = bench.folder / "mine.py"
    method.write_text(
        "from mergekit.methods import PerModel, merge_method\n\n"
        '@merge_method(title="Mine", base="ignored")\n'
        "def mine(models, *, weight: PerModel = 1.0):\n    return models[0] * weight[0]\n"
    )
    bench.recipe.write_text(bench.recipe.read_text().replace("linear", f"{method}:mine"))
    assert bench.run("--allow-code").exit_code == 0
    assert reproduce(bench.out).exit_code != 0
    assert reproduce(bench.out, "--allow-code").exit_code == 0
    found = CliRunner().invoke(commands, ["verify", str(bench.out)])
    assert found.exit_code == 0
    assert "not compared with those that were merged" in found.stdout


def test_what_is_no_merge_is_refused(models):
    result = reproduce(models / "a")
    assert result.exit_code == 9
    assert "there is no recipe in the folder" in result.stderr


def test_stopped_in_the_middle_it_cleans_up(bench, start, tmp_path):
    big = tmp_path / "big"
    for name in "ab":
        shutil.copytree(bench.models / name, big / name)
        tensors = load_file(big / name / "model.safetensors")
        tensors["model.layers.0.extra.weight"] = np.ones((4000, 4000), np.float32)
        save_file(tensors, big / name / "model.safetensors", {"format": "pt"})
    bench.recipe.write_text(bench.recipe.read_text().replace(str(bench.models), str(big)))
    assert bench.run().exit_code == 0
    process = start("-m", "mergekit", "reproduce", bench.out, "--num-threads", "1")
    deadline = time.monotonic() + 30
    while not left_beside(bench.out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode in (0, 130)
    assert left_beside(bench.out) == []
    assert bench.out.is_dir()
